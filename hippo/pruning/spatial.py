"""Spatial semantics: where neighbouring tokens of a frame differ, as edges and detail do (HIPPO's s_spat)."""

from __future__ import annotations

from itertools import product

from torch import Tensor
from torch.nn.functional import normalize, pad

from hippo.families import VideoGrid


def spatial_score(features: Tensor, grid: VideoGrid) -> Tensor:
    """Variance of the cosine similarity between a token and the tokens around it, eight or fewer at a frame's edge.

    features: (V, D) video tokens as the language model receives them. Returns (P,) float32, one for each cell. Source:
    HIPPO, s_spat.
    """
    tokens = normalize(grid.laid_out(features.float()), dim=-1)
    around = pad(tokens, (0, 0, 1, 1, 1, 1))
    here = pad(tokens.new_ones(1, grid.rows, grid.columns), (1, 1, 1, 1))
    total = squares = tokens.new_zeros(tokens.shape[:3])
    count = tokens.new_zeros(1, grid.rows, grid.columns)
    for down, right in product(range(3), repeat=2):
        if down == right == 1:
            continue
        similarity = (tokens * around[:, down : down + grid.rows, right : right + grid.columns]).sum(-1)
        total = total + similarity
        squares = squares + similarity**2
        count = count + here[:, down : down + grid.rows, right : right + grid.columns]
    count = count.clamp(min=1)
    variance = squares / count - (total / count) ** 2
    return variance.masked_fill(variance < 1e-6, 0.0).flatten()  # less is rounding
