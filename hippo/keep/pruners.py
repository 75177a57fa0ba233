"""Pruners: each picks the video tokens that the draft sees. They know tensors and grids, no model family."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hippo.errors import HippoError
from hippo.families import VideoGrid
from hippo.keep.fusion import budget, fuse, spend
from hippo.keep.spatial import spatial_score
from hippo.keep.temporal import temporal_score


@dataclass(frozen=True)
class Signals:
    """What there is to judge video tokens by.

    features: (V, D) the target's video tokens as its language model receives them.
    attention: (V,) the question's attention of the kind that the pruner asks for, `Listener.scores`; None if none.
    """

    grid: VideoGrid
    features: Tensor
    attention: Tensor | None = None


@dataclass(frozen=True)
class Pruner:
    """name; keep(signals, keep_ratio) -> kept indices, sorted, int64; attention: the kind of the target's attention it
    needs, one of `hippo.keep.attention.SCORES`, empty for none."""

    name: str
    keep: Callable[[Signals, float], Tensor]
    attention: str = ""


def keep_all(signals: Signals, keep_ratio: float) -> Tensor:
    """Every token, whatever the ratio."""
    return torch.arange(signals.grid.tokens)


def keep_none(signals: Signals, keep_ratio: float) -> Tensor:
    """No token at all: a draft that never sees the video, as transformers' assisted decoding has it."""
    return torch.arange(0)


def keep_uniform(signals: Signals, keep_ratio: float) -> Tensor:
    """Every n-th token in frame, row, column order: the simple alternative that SpecVLM's authors recommend."""
    return _evenly(torch.arange(signals.grid.tokens), budget(keep_ratio, signals.grid))


def keep_random(signals: Signals, keep_ratio: float) -> Tensor:
    """Any tokens; the same ones for the same number of tokens."""
    order = torch.randperm(signals.grid.tokens, generator=torch.Generator().manual_seed(0))
    return order[: budget(keep_ratio, signals.grid)].sort().values


def keep_attention(signals: Signals, keep_ratio: float) -> Tensor:
    """The tokens that the question looks at most, as they come: no normalisation, so the position bias shows."""
    assert signals.attention is not None
    return _best(signals.attention, signals, keep_ratio)


def keep_specvlm(signals: Signals, keep_ratio: float) -> Tensor:
    """SpecVLM's rule: the tokens looked at most until 40 % of the attention is reached, the others evenly spread."""
    assert signals.attention is not None
    count = budget(keep_ratio, signals.grid)
    mass, order = signals.attention.float().cpu().sort(descending=True)
    if not mass.isfinite().all():
        return _uniform_instead(signals, keep_ratio)
    enough = int((mass.cumsum(0) < 0.4 * mass.sum()).sum()) + 1
    top, others = order[: min(enough, count)], order[min(enough, count) :].sort().values
    return torch.cat([top, _evenly(others, count - len(top))]).sort().values


def keep_fused(
    attention: float, temporal: float, spatial: float, floor: float = 0.0
) -> Callable[[Signals, float], Tensor]:
    """A pruner of scores normalised per frame and summed with these weights; those of weight 0 are not computed.
    floor: see `spend`."""

    def keep(signals: Signals, keep_ratio: float) -> Tensor:
        grid = signals.grid
        scores, weights = [], []
        if attention:
            assert signals.attention is not None
            scores, weights = [signals.attention], [attention]
        for weight, score in ((temporal, temporal_score), (spatial, spatial_score)):
            if weight:
                scores.append(score(signals.features, grid))
                weights.append(weight)
        return _best(fuse(scores, weights, grid), signals, keep_ratio, floor)

    return keep


def _best(score: Tensor, signals: Signals, keep_ratio: float, floor: float = 0.0) -> Tensor:
    """The tokens with the highest score, (V,), on the CPU; evenly spread ones if the score says nothing."""
    if not score.isfinite().all() or bool((score == score[0]).all()):
        return _uniform_instead(signals, keep_ratio)
    return spend(score.cpu(), budget(keep_ratio, signals.grid), signals.grid, floor)


def _uniform_instead(signals: Signals, keep_ratio: float) -> Tensor:
    warnings.warn("the video tokens' scores are all equal or not finite: evenly spread tokens are kept", stacklevel=2)
    return keep_uniform(signals, keep_ratio)


def _evenly(tokens: Tensor, count: int) -> Tensor:
    """`count` of `tokens`, evenly spread over them."""
    return tokens[((torch.arange(count) + 0.5) * len(tokens) / count).long()] if count else tokens[:0]


# "hippo" is the method; equal weights are our choice. The others are controls.
PRUNERS = {
    pruner.name: pruner
    for pruner in (
        Pruner("none", keep_all),
        Pruner("uniform", keep_uniform),
        Pruner("hippo", keep_fused(1.0, 1.0, 1.0), attention="all"),
        Pruner("blind", keep_none),
        Pruner("random", keep_random),
        Pruner("attention", keep_attention, attention="all"),
        Pruner("specvlm", keep_specvlm, attention="all"),
        Pruner("temporal", keep_fused(0.0, 1.0, 0.0)),
        Pruner("spatial", keep_fused(0.0, 0.0, 1.0)),
        Pruner("attention-debiased", keep_attention, attention="debiased"),
        Pruner("hippo-debiased", keep_fused(1.0, 1.0, 1.0), attention="debiased"),
        Pruner("hippo-early", keep_fused(1.0, 1.0, 1.0), attention="early"),
        Pruner("hippo-half-floor", keep_fused(1.0, 1.0, 1.0, floor=0.5), attention="all"),
        Pruner("hippo-even-budget", keep_fused(1.0, 1.0, 1.0, floor=1.0), attention="all"),
        Pruner("hippo-without-attention", keep_fused(0.0, 1.0, 1.0)),
        Pruner("hippo-without-temporal", keep_fused(1.0, 0.0, 1.0), attention="all"),
        Pruner("hippo-without-spatial", keep_fused(1.0, 1.0, 0.0), attention="all"),
    )
}


def pruner_named(name: str) -> Pruner:
    """Look a pruner up. Raises HippoError naming those there are."""
    if name not in PRUNERS:
        raise HippoError(f"unknown pruner {name!r}", f"use one of: {', '.join(PRUNERS)}")
    return PRUNERS[name]
