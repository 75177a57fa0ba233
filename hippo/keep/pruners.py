"""Pruners: each picks the video tokens that the draft sees. They know tensors and grids, no model family."""

from __future__ import annotations

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
    attention: (V,) the question's attention, `Listener.scores`; None unless the pruner asks for it.
    """

    grid: VideoGrid
    features: Tensor
    attention: Tensor | None = None


@dataclass(frozen=True)
class Pruner:
    """name; keep(signals, keep_ratio) -> kept indices, sorted, int64; whether it needs the target's attention."""

    name: str
    keep: Callable[[Signals, float], Tensor]
    needs_attention: bool = False


def keep_all(signals: Signals, keep_ratio: float) -> Tensor:
    """Every token, whatever the ratio."""
    return torch.arange(signals.grid.tokens)


def keep_uniform(signals: Signals, keep_ratio: float) -> Tensor:
    """Every n-th token in frame, row, column order: the simple alternative that SpecVLM's authors recommend."""
    count = budget(keep_ratio, signals.grid)
    return ((torch.arange(count) + 0.5) * signals.grid.tokens / count).long()


def keep_hippo(signals: Signals, keep_ratio: float) -> Tensor:
    """The question's attention, temporal novelty and spatial detail, normalised per frame, summed, best first.

    Equal weights, no floor per frame: our choice.
    """
    assert signals.attention is not None
    grid = signals.grid
    scores = [signals.attention, temporal_score(signals.features, grid), spatial_score(signals.features, grid)]
    return spend(fuse(scores, (1.0, 1.0, 1.0), grid), budget(keep_ratio, grid), grid)


PRUNERS = {
    pruner.name: pruner
    for pruner in (
        Pruner("none", keep_all),
        Pruner("uniform", keep_uniform),
        Pruner("hippo", keep_hippo, needs_attention=True),
    )
}


def pruner_named(name: str) -> Pruner:
    """Look a pruner up. Raises HippoError naming those there are."""
    if name not in PRUNERS:
        raise HippoError(f"unknown pruner {name!r}", f"use one of: {', '.join(PRUNERS)}")
    return PRUNERS[name]
