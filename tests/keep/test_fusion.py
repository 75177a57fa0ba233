"""Normalising, fusing and spending."""

import torch

from hippo.families import VideoGrid
from hippo.keep.fusion import budget, fuse, normalise_per_frame, spend

GRID = VideoGrid(3, 2, 2)


def test_a_frames_level_no_longer_counts():
    score = torch.rand(12)
    lifted = score.view(3, 4) * torch.tensor([[1.0], [50.0], [3.0]]) + torch.tensor([[0.0], [7.0], [-2.0]])
    torch.testing.assert_close(
        normalise_per_frame(lifted.flatten(), GRID), normalise_per_frame(score, GRID), rtol=1e-3, atol=1e-4
    )


def test_equal_scores_become_zero():
    assert normalise_per_frame(torch.full((12,), 5.0), GRID).tolist() == [0.0] * 12


def test_weights_weigh():
    a, b = torch.rand(12), torch.rand(12)
    assert torch.equal(fuse([a, b], [1.0, 0.0], GRID), normalise_per_frame(a, GRID))


def test_the_budget_is_the_ratio_but_at_least_one_token():
    assert budget(0.5, GRID) == 6 and budget(1.0, GRID) == 12 and budget(1e-9, GRID) == 1


def test_frames_with_more_to_say_get_more():
    fused = torch.tensor([0.1, 0.2, 0.3, 0.4, 5, 6, 7, 8, 0.5, 0.6, 0.7, 9.0])
    assert spend(fused, 4, GRID).tolist() == [5, 6, 7, 11]


def test_a_floor_gives_every_frame_its_share():
    fused = torch.tensor([0.1, 0.2, 0.3, 0.4, 5, 6, 7, 8, 0.5, 0.6, 0.7, 9.0])
    kept = spend(fused, 6, GRID, floor=0.5)
    assert kept.tolist() == [3, 4, 5, 6, 7, 11]
