"""Pruners that are studied and not offered: controls, single scores, and variants of `hippo`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hippo.errors import BadRequest
from hippo.families import VideoGrid
from hippo.pruning import PRUNERS, Attention, Pruner, Signals
from hippo.pruning.attention import all_layers, attention_score, early_layers, outer_layers
from hippo.pruning.fusion import budget, normalise_per_frame
from hippo.pruning.pruners import fused_score, keep_attention, keep_best, keep_hippo, top
from hippo.pruning.spatial import spatial_score
from hippo.pruning.temporal import temporal_score


def keep_none(signals: Signals, keep_ratio: float) -> Tensor:
    """No token at all: a draft that never sees the video, as in transformers' assisted decoding."""
    return torch.arange(0)


def keep_random(signals: Signals, keep_ratio: float) -> Tensor:
    """Random tokens; the same ones for the same number of tokens."""
    order = torch.randperm(signals.grid.tokens, generator=torch.Generator().manual_seed(0))
    return order[: budget(keep_ratio, signals.grid)].sort().values


def keep_scores(
    attention: bool = True, temporal: bool = True, spatial: bool = True
) -> Callable[[Signals, float], Tensor]:
    """`hippo` with some of its three scores; the others are not computed."""

    def keep(signals: Signals, keep_ratio: float) -> Tensor:
        return keep_best(fused_score(signals, attention, temporal, spatial), signals, keep_ratio)

    return keep


def keep_per_frame(signals: Signals, keep_ratio: float) -> Tensor:
    """`hippo` with attention normalised within each frame, and weight 1."""
    assert signals.attention is not None
    grid, features = signals.grid, signals.features
    scores = (
        grid.laid_out(signals.attention).flatten(),
        temporal_score(features, grid),
        spatial_score(features, grid),
    )
    fused = torch.stack([normalise_per_frame(score, grid).to(features.device) for score in scores]).sum(dim=0)
    return keep_best(grid.of_tokens(fused), signals, keep_ratio)


def keep_with_floor(floor: float) -> Callable[[Signals, float], Tensor]:
    """`hippo` with `floor`, the share of an even split that every frame gets first."""

    def keep(signals: Signals, keep_ratio: float) -> Tensor:
        spend = partial(spend_with_floor, grid=signals.grid, floor=floor)
        return keep_best(fused_score(signals), signals, keep_ratio, spend)

    return keep


def spend_with_floor(fused: Tensor, count: int, grid: VideoGrid, floor: float) -> Tensor:
    """The `count` best tokens, of which each frame has at least `floor` times an even share. fused: (V,). Returns the
    kept indices, sorted, (count,) int64."""
    cells = fused.new_full((grid.frames * grid.rows * grid.columns,), -torch.inf)
    cells[grid.cells] = fused
    boosted = cells.view(grid.frames, -1)
    best = boosted.topk(int(floor * count / grid.frames), dim=1).indices
    boosted.scatter_add_(1, best, torch.full_like(best, 1_000_000, dtype=boosted.dtype))
    return top(grid.of_tokens(cells), count)


def keep_without_repeats(signals: Signals, keep_ratio: float) -> Tensor:
    """`hippo`, but of tokens that look nearly the same only the best is kept, as far as others are left."""
    return keep_best(
        fused_score(signals), signals, keep_ratio, lambda score, count: spend_once(score, signals.features, count)
    )


def spend_once(fused: Tensor, features: Tensor, count: int, same_above: float = 0.95) -> Tensor:
    """The `count` best tokens, without those that look like a better one. Looks at the best 3 x count.

    fused: (V,). features: (V, D). same_above: cosine from which two tokens count as the same. Returns the kept indices,
    sorted, (count,) int64.
    """
    order = fused.topk(min(3 * count, len(fused))).indices
    directions = normalize(features[order.to(features.device)].float(), dim=-1)
    same = (directions @ directions.T > same_above).cpu()
    taken, repeats = torch.zeros(len(order), dtype=torch.bool), torch.zeros(len(order), dtype=torch.bool)
    left = count
    for index in range(len(order)):
        if left and not repeats[index]:
            taken[index], left = True, left - 1
            repeats |= same[index]
    taken[(~taken).nonzero()[:left, 0]] = True
    return order[taken].sort().values


def debiased_attention_score(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """`attention_score` of the later queries less that of the first, which cannot know the question: its attention is
    what positions draw whatever is asked. Shapes as there; sums to 0."""
    if queries.shape[1] < 2:
        return torch.zeros(keys.shape[1], device=keys.device)
    return attention_score(queries[:, 1:], keys, scaling) - attention_score(queries[:, :1], keys, scaling)


_ALL, _EARLY, _OUTER = Attention(all_layers), Attention(early_layers), Attention(outer_layers)
_DEBIASED = Attention(all_layers, debiased_attention_score)

ABLATIONS = {
    pruner.name: pruner
    for pruner in (
        Pruner("blind", keep_none),
        Pruner("random", keep_random),
        Pruner("attention-early", keep_attention, _EARLY),
        Pruner("attention-debiased", keep_attention, _DEBIASED),
        Pruner("temporal", keep_scores(attention=False, spatial=False)),
        Pruner("spatial", keep_scores(attention=False, temporal=False)),
        Pruner("hippo-early-layers", keep_hippo, _EARLY),
        Pruner("hippo-all-layers", keep_hippo, _ALL),
        Pruner("hippo-debiased", keep_hippo, _DEBIASED),
        Pruner("hippo-per-frame", keep_per_frame, _ALL),
        Pruner("hippo-half-floor", keep_with_floor(0.5), _OUTER),
        Pruner("hippo-even-budget", keep_with_floor(1.0), _OUTER),
        Pruner("hippo-without-repeats", keep_without_repeats, _OUTER),
        Pruner("hippo-without-attention", keep_scores(attention=False)),
        Pruner("hippo-without-temporal", keep_scores(temporal=False), _OUTER),
        Pruner("hippo-without-spatial", keep_scores(spatial=False), _OUTER),
    )
}


def pruner_named(name: str) -> Pruner:
    """Look up one of hippo's pruners or an ablation. Raises BadRequest naming those there are."""
    known = PRUNERS | ABLATIONS
    if name not in known:
        raise BadRequest(f"unknown pruner {name!r}", f"use one of: {', '.join(known)}")
    return known[name]
