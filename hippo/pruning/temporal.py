"""Temporal redundancy: content of a place that was not there one frame earlier (HIPPO's s_temp)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hippo.families import VideoGrid


def temporal_score(features: Tensor, grid: VideoGrid) -> Tensor:
    """1 - cos(token, token of the same place one frame earlier); new content scores high.

    features: (V, D) video tokens as the language model receives them. Returns (P,) float32 in 0..2, one for each
    cell. The first frame is compared with the second; a single frame scores 0 throughout. Source: HIPPO, s_temp.
    """
    frames = grid.laid_out(features.float()).flatten(1, 2)
    if grid.frames == 1:
        return torch.zeros(grid.rows * grid.columns, device=features.device)
    change = 1 - cosine_similarity(frames[1:], frames[:-1], dim=-1)
    change = change.masked_fill(change < 1e-6, 0.0)  # less is rounding
    return torch.cat([change[:1], change]).flatten()
