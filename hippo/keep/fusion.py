"""Fusing scores and spending the budget: which video tokens the draft gets to see."""

from __future__ import annotations

import torch
from torch import Tensor

from hippo.families import VideoGrid


def normalise_per_frame(score: Tensor, grid: VideoGrid) -> Tensor:
    """Each frame's scores to mean 0 and standard deviation 1: a frame's place in the clip no longer counts.

    score: (P,), one for each cell. Returns (P,) float32; a frame whose scores are all equal becomes 0 throughout.
    """
    frames = score.float().view(grid.frames, -1)
    centred = frames - frames.mean(dim=1, keepdim=True)
    spread = centred.std(dim=1, unbiased=False, keepdim=True)
    flat = spread <= 1e-6 * frames.abs().amax(dim=1, keepdim=True)  # nothing but rounding
    return (centred / spread).masked_fill(flat, 0.0).flatten()


def normalise(score: Tensor) -> Tensor:
    """All of a video's scores, (P,), to mean 0 and standard deviation 1 together: frames stay unequal."""
    return normalise_per_frame(score, VideoGrid(1, 1, len(score)))


def fuse(
    grid: VideoGrid,
    *,
    attention: Tensor | None = None,
    temporal: Tensor | None = None,
    spatial: Tensor | None = None,
    weight: float = 2.0,
    attention_per_frame: bool = False,
) -> Tensor:
    """The sum of those scores that are given, each (P,), one for each cell, after normalising. Returns (P,) float32.

    Change and detail are normalised within each frame and weigh 1. Attention weighs `weight` and is normalised over the
    whole video, unless `attention_per_frame`: which frames the question looks at counts (our choice, measured).
    """
    parts = [normalise_per_frame(score, grid) for score in (temporal, spatial) if score is not None]
    if attention is not None:
        parts.append(weight * (normalise_per_frame(attention, grid) if attention_per_frame else normalise(attention)))
    return torch.stack([part.to(parts[0].device) for part in parts]).sum(dim=0)


def budget(keep_ratio: float, grid: VideoGrid) -> int:
    """How many tokens to keep: the ratio of V, rounded, at least one."""
    return max(1, min(grid.tokens, round(keep_ratio * grid.tokens)))


def spend(fused: Tensor, count: int, grid: VideoGrid, floor: float = 0.0) -> Tensor:
    """The `count` best tokens over all frames, so that frames with more to say get more of them.

    fused: (V,). floor: the share of an even split that every frame gets first (our choice: 0, no floor).
    Returns the kept indices, sorted, (count,) int64.
    """
    cells = fused.new_full((grid.frames * grid.rows * grid.columns,), -torch.inf)
    cells[grid.cells] = fused
    least = int(floor * count / grid.frames)
    boosted = cells.view(grid.frames, -1)
    if least:
        best = boosted.topk(least, dim=1).indices
        boosted.scatter_add_(1, best, torch.full_like(best, 1_000_000, dtype=boosted.dtype))
    return grid.of_tokens(cells).topk(count).indices.sort().values


def spend_without_repeats(fused: Tensor, features: Tensor, count: int, grid: VideoGrid, alike: float = 0.95) -> Tensor:
    """Like `spend`, but of tokens that look nearly the same only the best is taken, as far as others are left.

    fused: (V,). features: (V, D), on the same device. alike: cosine from which two tokens count as the same. Looks at
    the best 3 x count tokens, (3 count)^2 cosines. Returns the kept indices, sorted, (count,) int64. Our choice.
    """
    order = fused.topk(min(3 * count, grid.tokens)).indices
    directions = torch.nn.functional.normalize(features[order].float(), dim=-1)
    same = (directions @ directions.T > alike).cpu()
    taken, repeats = torch.zeros(len(order), dtype=torch.bool), torch.zeros(len(order), dtype=torch.bool)
    left = count
    for index in range(len(order)):
        if left and not repeats[index]:
            taken[index], left = True, left - 1
            repeats |= same[index]
    taken[(~taken).nonzero()[:left, 0]] = True
    return order.cpu()[taken].sort().values
