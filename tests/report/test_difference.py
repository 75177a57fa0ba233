"""Telling rounding from a bug."""

import pytest

from hippo.forward import CachedModel
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


def test_a_near_tie_is_told_from_a_bug(monkeypatch):
    """Two tokens closer to each other than rounding moves them: shown with a model that rounds coarsely."""
    target, request = model("qwen2_5_vl"), inputs("qwen2_5_vl")
    right = generated(target, request)
    plain = CachedModel.extend

    def coarse(self, ids):
        rows = plain(self, ids).clone()
        rows[-1] = rows[-1] + (3.0 if len(ids) > 1 else 0.0)
        rows[-1][7] = rows[-1].max() - 1.0
        return rows

    monkeypatch.setattr(CachedModel, "extend", coarse)
    found = first_difference(Pair(target, None), request, right, [*right[:5], 7])
    assert found["rounding"] == pytest.approx(3.0, abs=0.01) and found["near_tie"]
