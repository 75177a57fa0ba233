"""Spatial variance against a slow reference."""

import torch

from hippo.families import VideoGrid
from hippo.pruning.spatial import spatial_score


def test_against_a_slow_reference():
    torch.manual_seed(0)
    grid = VideoGrid(2, 3, 4)
    features = torch.randn(24, 5)
    cells = features.view(2, 3, 4, 5)
    score = spatial_score(features, grid).view(2, 3, 4)
    for f in range(2):
        for r in range(3):
            for c in range(4):
                around = [
                    torch.cosine_similarity(cells[f, r, c], cells[f, y, x], dim=0)
                    for y in range(max(0, r - 1), min(3, r + 2))
                    for x in range(max(0, c - 1), min(4, c + 2))
                    if (y, x) != (r, c)
                ]
                expected = torch.stack(around).var(unbiased=False)
                torch.testing.assert_close(score[f, r, c], expected, rtol=1e-4, atol=1e-6)


def test_a_flat_picture_scores_nothing():
    assert spatial_score(torch.ones(12, 4), VideoGrid(1, 3, 4)).abs().max() < 1e-6


def test_a_single_token_has_no_neighbours():
    assert spatial_score(torch.randn(2, 4), VideoGrid(2, 1, 1)).tolist() == [0.0, 0.0]
