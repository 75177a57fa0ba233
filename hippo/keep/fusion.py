"""Fusing scores and spending the budget: which video tokens the draft gets to see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hippo.families import VideoGrid


def normalise_per_frame(score: Tensor, grid: VideoGrid) -> Tensor:
    """Each frame's scores to mean 0 and standard deviation 1: a frame's place in the clip no longer counts.

    score: (V,). Returns (V,) float32; a frame whose scores are all equal becomes 0 throughout.
    """
    frames = score.float().view(grid.frames, -1)
    centred = frames - frames.mean(dim=1, keepdim=True)
    spread = centred.std(dim=1, unbiased=False, keepdim=True)
    flat = spread <= 1e-6 * frames.abs().amax(dim=1, keepdim=True)  # nothing but rounding
    return (centred / spread).masked_fill(flat, 0.0).flatten()


def fuse(scores: Sequence[Tensor], weights: Sequence[float], grid: VideoGrid) -> Tensor:
    """The weighted sum of scores, each (V,), after `normalise_per_frame`. Returns (V,) float32."""
    total = torch.zeros(grid.tokens, device=scores[0].device)
    for score, weight in zip(scores, weights, strict=True):
        total = total + weight * normalise_per_frame(score, grid)
    return total


def budget(keep_ratio: float, grid: VideoGrid) -> int:
    """How many tokens to keep: the ratio of V, rounded, at least one."""
    return max(1, min(grid.tokens, round(keep_ratio * grid.tokens)))


def spend(fused: Tensor, count: int, grid: VideoGrid, floor: float = 0.0) -> Tensor:
    """The `count` best tokens over all frames, so that frames with more to say get more of them.

    fused: (V,). floor: the share of an even split that every frame gets first (our choice: 0, no floor).
    Returns the kept indices, sorted, (count,) int64.
    """
    frames = fused.view(grid.frames, -1)
    least = int(floor * count / grid.frames)
    boosted = frames.clone()
    if least:
        best = frames.topk(least, dim=1).indices
        boosted.scatter_add_(1, best, torch.full_like(best, 1_000_000, dtype=boosted.dtype))
    return boosted.flatten().topk(count).indices.sort().values
