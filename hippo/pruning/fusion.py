"""Fusing scores into one, and the number of tokens to keep."""

from __future__ import annotations

import torch
from torch import Tensor

from hippo.families import VideoGrid

_ATTENTION_WEIGHT = 2.0


def normalise_per_frame(score: Tensor, grid: VideoGrid) -> Tensor:
    """Each frame's scores to mean 0 and standard deviation 1.

    score: (P,), one for each cell. Returns (P,) float32; a frame whose scores are all equal becomes 0 throughout.
    """
    frames = score.float().view(grid.frames, -1)
    centred = frames - frames.mean(dim=1, keepdim=True)
    spread = centred.std(dim=1, unbiased=False, keepdim=True)
    flat = spread <= 1e-6 * frames.abs().amax(dim=1, keepdim=True)  # nothing but rounding
    return (centred / spread).masked_fill(flat, 0.0).flatten()


def normalise(score: Tensor) -> Tensor:
    """All of a video's scores, (P,), to mean 0 and standard deviation 1 together: differences between frames stay."""
    return normalise_per_frame(score, VideoGrid(1, 1, len(score)))


def fuse(
    grid: VideoGrid,
    *,
    attention: Tensor | None = None,
    temporal: Tensor | None = None,
    spatial: Tensor | None = None,
) -> Tensor:
    """The weighted sum of the given scores, each (P,), one for each cell. Returns (P,) float32.

    Temporal and spatial scores are normalised within each frame and weigh 1. Attention is normalised over the whole
    video and weighs 2.
    """
    parts = [normalise_per_frame(score, grid) for score in (temporal, spatial) if score is not None]
    if attention is not None:
        parts.append(_ATTENTION_WEIGHT * normalise(attention))
    return torch.stack([part.to(parts[0].device) for part in parts]).sum(dim=0)


def budget(keep_ratio: float, grid: VideoGrid) -> int:
    """How many tokens to keep: the ratio of V, rounded, at least one."""
    return max(1, min(grid.tokens, round(keep_ratio * grid.tokens)))
