"""Normalising, fusing and spending."""

import pytest
import torch

from hippo.families import VideoGrid
from hippo.pruning.fusion import budget, fuse, normalise, normalise_per_frame

GRID = VideoGrid(3, 2, 2)


def test_a_frames_level_no_longer_counts():
    score = torch.rand(12)
    lifted = score.view(3, 4) * torch.tensor([[1.0], [50.0], [3.0]]) + torch.tensor([[0.0], [7.0], [-2.0]])
    torch.testing.assert_close(
        normalise_per_frame(lifted.flatten(), GRID), normalise_per_frame(score, GRID), rtol=1e-3, atol=1e-4
    )


def test_equal_scores_become_zero():
    assert normalise_per_frame(torch.full((12,), 5.0), GRID).tolist() == [0.0] * 12


def test_over_the_whole_video_frames_stay_unequal():
    score = torch.arange(12.0)
    frames = normalise(score).view(3, 4).mean(dim=1)
    assert frames[0] < frames[1] < frames[2] and abs(float(normalise(score).mean())) < 1e-6
    assert float(normalise(score).std(unbiased=False)) == pytest.approx(1)


def test_scores_that_are_given_are_summed_and_attention_weighs_two():
    attention, temporal, spatial = torch.rand(3, 12)
    parts = [normalise_per_frame(temporal, GRID), normalise_per_frame(spatial, GRID)]
    every = fuse(GRID, attention=attention, temporal=temporal, spatial=spatial)
    torch.testing.assert_close(every, 2 * normalise(attention) + parts[0] + parts[1])
    assert torch.equal(fuse(GRID, temporal=temporal), parts[0])


def test_the_budget_is_the_ratio_but_at_least_one_token():
    assert budget(0.5, GRID) == 6 and budget(1.0, GRID) == 12 and budget(1e-9, GRID) == 1
