"""Telling rounding from a bug."""

import copy

import pytest
import torch

from hippo.forward import CachedModel
from hippo.pair import Pair
from hippo.report.difference import first_difference, near_tie_bound
from tests.models import generated, inputs, model


def test_a_wrong_token_far_from_a_tie_is_a_bug():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    right = generated(target, request)
    wrong = [*right[:5], (right[5] + 1) % 140, *right[6:]]
    found = first_difference(Pair(target, None), request, right, wrong)
    out = target.generate(
        **request, do_sample=False, max_new_tokens=6, output_logits=True, return_dict_in_generate=True
    )
    row = out.logits[5][0]
    assert found["at"] == 5 and found["theirs"] == right[5] and found["ours"] == wrong[5]
    assert found["gap"] == float(row[right[5]] - row[wrong[5]]) > found["bound"] > found["moved"]
    assert not found["near_tie"]


def test_an_answer_that_goes_on_too_long():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    right = generated(target, request)
    found = first_difference(Pair(target, None), request, right, [*right, 3])
    assert found["at"] == len(right) and found["theirs"] is None and found["ours"] == 3
    assert found["gap"] is None and not found["near_tie"]


@pytest.fixture
def tied():
    """(target, request, generate()'s tokens, others): one of two tokens with the same row in the head for the other."""
    target, request = copy.deepcopy(model("qwen2_5_vl")), inputs("qwen2_5_vl")
    said = generated(target, request)[5]
    twin = said + 1
    target.lm_head.weight.data[twin] = target.lm_head.weight.data[said]
    right = generated(target, request)
    at = right.index(said)
    return target, request, right, [*right[:at], twin, *right[at + 1 :]]


def test_either_of_two_equally_likely_tokens_is_a_near_tie(tied):
    target, request, right, other = tied
    found = first_difference(Pair(target, None), request, right, other)
    assert found["gap"] <= found["bound"] and found["moved"] <= found["bound"] and found["near_tie"]


@pytest.mark.parametrize("wrong", [3.0, float("nan")])
def test_a_forward_that_is_wrong_is_a_bug_even_where_two_tokens_are_equally_likely(tied, monkeypatch, wrong):
    plain = CachedModel.extend
    monkeypatch.setattr(CachedModel, "extend", lambda self, ids: plain(self, ids) + (wrong if len(ids) > 1 else 0.0))
    target, request, right, other = tied
    found = first_difference(Pair(target, None), request, right, other)
    assert found["gap"] <= found["bound"] and not found["moved"] <= 2.9 and not found["near_tie"]


def test_rounding_is_coarser_in_half_precision_and_in_deep_models():
    logits = torch.tensor([1.0, -4.0, float("-inf")])
    fine, coarse = (near_tie_bound(dtype, logits, 4) for dtype in (torch.float32, torch.bfloat16))
    assert fine == 32 * 2**-23 * 4 * 2 and coarse == 2 * 2**-7 * 4 * 2
    assert near_tie_bound(torch.bfloat16, logits, 16) == 2 * coarse
