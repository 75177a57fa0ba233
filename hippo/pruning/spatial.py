"""Spatial semantics: where neighbouring tokens of a frame differ, as edges and detail do (HIPPO's s_spat)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize, pad

from hippo.families import VideoGrid


def spatial_score(features: Tensor, grid: VideoGrid, radius: int = 1) -> Tensor:
    """Variance of the cosine similarity between a token and the tokens in the window around it.

    features: (V, D) video tokens as the language model receives them. radius: of the square window, in tokens; the
    window is cut at the frame's edge. Returns (P,) float32, one for each cell. Source: HIPPO, s_spat.
    """
    tokens = normalize(grid.laid_out(features.float()), dim=-1)
    around = pad(tokens, (0, 0, radius, radius, radius, radius))
    here = pad(tokens.new_ones(1, grid.rows, grid.columns), (radius, radius, radius, radius))
    total = squares = tokens.new_zeros(tokens.shape[:3])
    count = tokens.new_zeros(1, grid.rows, grid.columns)
    for down in range(2 * radius + 1):
        for right in range(2 * radius + 1):
            if down == right == radius:
                continue
            similarity = (tokens * around[:, down : down + grid.rows, right : right + grid.columns]).sum(-1)
            total = total + similarity
            squares = squares + similarity**2
            count = count + here[:, down : down + grid.rows, right : right + grid.columns]
    count = count.clamp(min=1)
    variance = squares / count - (total / count) ** 2
    return variance.masked_fill(variance < 1e-6, 0.0).flatten()  # less is rounding
