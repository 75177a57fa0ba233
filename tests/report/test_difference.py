"""Telling rounding from a bug."""

import pytest

from hippo.pair import Pair
from hippo.report.difference import first_difference
from tests.models import generated, inputs, model


def test_a_wrong_token_far_from_a_tie_is_a_bug():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    right = generated(target, request)
    wrong = [*right[:5], (right[5] + 1) % 140, *right[6:]]
    found = first_difference(Pair(target, None), request, right, wrong)
    out = target.generate(
        **request, do_sample=False, max_new_tokens=6, output_logits=True, return_dict_in_generate=True
    )
    best = out.logits[5][0].topk(2).values
    assert found["at"] == 5 and found["theirs"] == right[5] and found["ours"] == wrong[5]
    assert found["gap"] == pytest.approx(float(best[0] - best[1]), abs=1e-3) and not found["near_tie"]


def test_an_answer_that_goes_on_too_long():
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    right = generated(target, request)
    found = first_difference(Pair(target, None), request, right, [*right, 3])
    assert found["at"] == len(right) and found["theirs"] is None and found["ours"] == 3
