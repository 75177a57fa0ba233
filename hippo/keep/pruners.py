"""Pruners: each picks the video tokens that the draft sees. They know tensors and grids, no model family."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hippo.errors import HippoError
from hippo.families import Prompt, VideoGrid
from hippo.keep.fusion import budget, fuse, spend, spend_without_repeats
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


def signals_of(prompt: Prompt, features: Tensor, attention: Tensor | None) -> list[Signals]:
    """The signals of each video of a prompt. features: (V, D) and attention: (V,) of all of them, as in `Signals`."""
    sizes = [grid.tokens for grid in prompt.grids]
    heard = [None] * len(sizes) if attention is None else attention.split(sizes)
    return [Signals(*of_one) for of_one in zip(prompt.grids, features.split(sizes), heard, strict=True)]


@dataclass(frozen=True)
class Pruner:
    """name; keep(signals, keep_ratio) -> kept indices, sorted, int64; attention: the kind of the target's attention it
    needs, one of `hippo.keep.attention.SCORES`, empty for none."""

    name: str
    keep: Callable[[Signals, float], Tensor]
    attention: str = ""

    def keep_all_of(self, videos: Sequence[Signals], keep_ratio: float) -> Tensor:
        """Kept indices into the tokens of all videos, each of which keeps its own share."""
        first = [0, *accumulate(signals.grid.tokens for signals in videos)]
        kept = [self.keep(signals, keep_ratio) + begin for signals, begin in zip(videos, first, strict=False)]
        return torch.cat(kept) if kept else torch.arange(0)


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
    attention: bool = True,
    temporal: bool = True,
    spatial: bool = True,
    floor: float = 0.0,
    repeats: bool = True,
    **how: Any,
) -> Callable[[Signals, float], Tensor]:
    """A pruner of the sum of some of the three scores; those left out are not computed. floor: see `spend`. repeats:
    whether tokens that look the same may all be kept. how: see `fuse`."""

    def keep(signals: Signals, keep_ratio: float) -> Tensor:
        grid, heard = signals.grid, signals.attention if attention else None
        fused = fuse(
            grid,
            attention=None if heard is None else grid.laid_out(heard).flatten(),
            temporal=temporal_score(signals.features, grid) if temporal else None,
            spatial=spatial_score(signals.features, grid) if spatial else None,
            **how,
        )
        return _best(grid.of_tokens(fused), signals, keep_ratio, floor, repeats)

    return keep


def _best(score: Tensor, signals: Signals, keep_ratio: float, floor: float = 0.0, repeats: bool = True) -> Tensor:
    """The tokens with the highest score, (V,), on the CPU; evenly spread ones if the score says nothing."""
    if not score.isfinite().all() or bool((score == score[0]).all()):
        return _uniform_instead(signals, keep_ratio)
    count = budget(keep_ratio, signals.grid)
    if not repeats:
        return spend_without_repeats(score.to(signals.features.device), signals.features, count, signals.grid)
    return spend(score.cpu(), count, signals.grid, floor)


def _uniform_instead(signals: Signals, keep_ratio: float) -> Tensor:
    warnings.warn("the video tokens' scores are all equal or not finite: evenly spread tokens are kept", stacklevel=2)
    return keep_uniform(signals, keep_ratio)


def _evenly(tokens: Tensor, count: int) -> Tensor:
    """`count` of `tokens`, evenly spread over them."""
    return tokens[((torch.arange(count) + 0.5) * len(tokens) / count).long()] if count else tokens[:0]


# "hippo" is the method, with what the study found best; the others are controls.
PRUNERS = {
    pruner.name: pruner
    for pruner in (
        Pruner("none", keep_all),
        Pruner("uniform", keep_uniform),
        Pruner("hippo", keep_fused(), attention="outer"),
        Pruner("blind", keep_none),
        Pruner("random", keep_random),
        Pruner("attention", keep_attention, attention="all"),
        Pruner("attention-early", keep_attention, attention="early"),
        Pruner("attention-debiased", keep_attention, attention="debiased"),
        Pruner("specvlm", keep_specvlm, attention="all"),
        Pruner("temporal", keep_fused(attention=False, spatial=False)),
        Pruner("spatial", keep_fused(attention=False, temporal=False)),
        Pruner("hippo-early-layers", keep_fused(), attention="early"),
        Pruner("hippo-all-layers", keep_fused(), attention="all"),
        Pruner("hippo-debiased", keep_fused(), attention="debiased"),
        Pruner("hippo-per-frame", keep_fused(weight=1.0, attention_per_frame=True), attention="all"),
        Pruner("hippo-half-floor", keep_fused(floor=0.5), attention="outer"),
        Pruner("hippo-even-budget", keep_fused(floor=1.0), attention="outer"),
        Pruner("hippo-without-repeats", keep_fused(repeats=False), attention="outer"),
        Pruner("hippo-without-attention", keep_fused(attention=False)),
        Pruner("hippo-without-temporal", keep_fused(temporal=False), attention="outer"),
        Pruner("hippo-without-spatial", keep_fused(spatial=False), attention="outer"),
    )
}


def pruner_named(name: str) -> Pruner:
    """Look a pruner up. Raises HippoError naming those there are."""
    if name not in PRUNERS:
        raise HippoError(f"unknown pruner {name!r}", f"use one of: {', '.join(PRUNERS)}")
    return PRUNERS[name]
