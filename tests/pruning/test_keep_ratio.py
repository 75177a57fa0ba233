"""How much of the score is held: by hand, and at the edges."""

import pytest
import torch

from hippo.pruning import RATIOS, captured, relative_acceptance


def test_a_few_that_stand_out_hold_nearly_all():
    score = torch.zeros(100)
    score[:5] = 10.0
    assert captured([score], 0.05) == pytest.approx(1.0)
    assert captured([score], 0.02) == pytest.approx(0.4)


def test_by_hand():
    # The mean is 2; above it are 1 and 2, of which the best token holds 2 of 3.
    assert captured([torch.tensor([0.0, 1.0, 3.0, 4.0])], 0.25) == pytest.approx(2 / 3)


def test_noise_takes_more_tokens_than_a_peak():
    torch.manual_seed(0)
    noise, peak = torch.rand(1000), torch.rand(1000)
    peak[:50] += 20
    assert captured([noise], 0.1) < 0.5 < captured([peak], 0.1)


@pytest.mark.parametrize("score", [torch.ones(8), torch.full((8,), float("nan"))])
def test_a_score_that_says_nothing_holds_what_chance_would(score):
    assert captured([score], 0.2) == 0.2


def test_more_tokens_hold_more_and_all_hold_all():
    torch.manual_seed(1)
    scores = [torch.randn(64), torch.rand(10)]
    held = [captured(scores, ratio) for ratio in RATIOS]
    assert held == sorted(held) and held[-1] == pytest.approx(1.0)


def test_acceptance_grows_with_what_is_held():
    assert relative_acceptance(0.0) == pytest.approx(0.8) and relative_acceptance(1.0) == 1
    assert relative_acceptance(0.3) < relative_acceptance(0.6)
