"""Temporal novelty against a slow reference."""

import torch

from hippo.families import VideoGrid
from hippo.pruning.temporal import temporal_score


def test_against_a_slow_reference():
    torch.manual_seed(0)
    grid = VideoGrid(4, 2, 3)
    features = torch.randn(24, 5)
    score = temporal_score(features, grid).view(4, 6)
    for frame in range(1, 4):
        for place in range(6):
            now, before = features[frame * 6 + place], features[(frame - 1) * 6 + place]
            cosine = now @ before / (now.norm() * before.norm())
            torch.testing.assert_close(score[frame, place], 1 - cosine)
    assert torch.equal(score[0], score[1])


def test_what_does_not_change_scores_nothing():
    grid = VideoGrid(3, 1, 2)
    features = torch.randn(2, 4).repeat(3, 1)
    features[5] += 3
    score = temporal_score(features, grid)
    assert score[:5].abs().max() < 1e-6 < score[5]


def test_one_frame():
    assert temporal_score(torch.randn(6, 4), VideoGrid(1, 2, 3)).tolist() == [0.0] * 6
