"""Pruners choose the video tokens that the draft sees. They know tensors and grids, no model family."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hippo import plugins
from hippo.errors import BadRequest, HippoError, is_out_of_memory
from hippo.families import Prompt, VideoGrid
from hippo.pruning.attention import Attention, outer_layers
from hippo.pruning.fusion import budget, fuse
from hippo.pruning.spatial import spatial_score
from hippo.pruning.temporal import temporal_score

_SPECVLM_MASS = 0.4  # share of the attention that SpecVLM's top tokens reach


@dataclass(frozen=True)
class Signals:
    """What pruners judge one video's tokens by.

    features: (V, D) the target's video tokens as its language model receives them.
    attention: (V,) the question's attention as `Pruner.attention` asks for it.
    """

    grid: VideoGrid
    features: Tensor
    attention: Tensor | None = None

    @cached_property
    def fused(self) -> Tensor:
        """(V,) float32: the fused score of each token, of all three scores."""
        return fused_score(self)


def signals_of(prompt: Prompt, features: Tensor, attention: Tensor | None) -> list[Signals]:
    """The signals of each video of a prompt. features: (V, D) and attention: (V,) of all of them, as in `Signals`."""
    sizes = [grid.tokens for grid in prompt.grids]
    attentions = [None] * len(sizes) if attention is None else attention.split(sizes)
    return [Signals(*of_one) for of_one in zip(prompt.grids, features.split(sizes), attentions, strict=True)]


@dataclass(frozen=True)
class Pruner:
    """keep: (signals, keep_ratio) -> the kept tokens of one video: sorted indices, (K,) integers, or a mask, (V,) bool.
    K is at most `budget(keep_ratio, grid)`. attention: which of the target's attention it needs, or None. score: what
    it ranks tokens by, signals -> (V,), by which the keep ratio "auto" is chosen; None if it ranks by nothing."""

    name: str
    keep: Callable[[Signals, float], Tensor]
    attention: Attention | None = None
    score: Callable[[Signals], Tensor] | None = None

    def keep_all_of(self, videos: Sequence[Signals], keep_ratio: float) -> Tensor:
        """Kept indices into the tokens of all videos, each of which keeps its own share, int64. Raises BadRequest if a
        pruner that is not hippo's own fails or returns something else."""
        first = [0, *accumulate(signals.grid.tokens for signals in videos)]
        kept = [self._keep(signals, keep_ratio) + begin for signals, begin in zip(videos, first, strict=False)]
        return torch.cat(kept) if kept else torch.arange(0)

    def _keep(self, signals: Signals, keep_ratio: float) -> Tensor:
        if PRUNERS.get(self.name) is self:
            return self.keep(signals, keep_ratio)
        try:
            kept = self.keep(signals, keep_ratio)
        except HippoError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise BadRequest(
                f"pruner {self.name!r} failed ({plugins.said(error)})", "correct it, or use another"
            ) from error
        return checked(self.name, kept, signals.grid.tokens, budget(keep_ratio, signals.grid))


def checked(name: str, kept: Any, tokens: int, most: int) -> Tensor:
    """What a user's pruner returned, as indices, (K,) int64 on the CPU: at most `most` of so many tokens. Raises
    BadRequest that names the pruner."""
    try:
        found = torch.as_tensor(kept).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = None
    if found is None or not (found.dtype is torch.bool or _is_integer(found) or found.shape == (0,)):
        what = type(kept).__name__ if found is None else str(found.dtype).removeprefix("torch.")
        problem = f"returned {what}, neither indices nor a mask"
    elif found.dtype is torch.bool and found.shape != (tokens,):
        problem = f"returned a mask of shape {tuple(found.shape)} for {tokens} video tokens"
    elif found.ndim != 1:
        problem = f"returned indices of shape {tuple(found.shape)}"
    else:
        found = found.nonzero()[:, 0] if found.dtype is torch.bool else found.long()
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) < tokens:
            problem = (
                f"returned an index out of range: {int(found.min())} to {int(found.max())} of {tokens} video tokens"
            )
        elif bool((found.diff() <= 0).any()):
            problem = "returned indices that are not sorted, or repeat"
        elif len(found) > most:
            problem = f"kept {len(found)} of {tokens} video tokens, and keep_ratio allows {most}"
        else:
            return found
    raise BadRequest(f"pruner {name!r} {problem}", "return sorted indices, or a mask, of as many as keep_ratio allows")


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex())


def keep_all(signals: Signals, keep_ratio: float) -> Tensor:
    """Every token, whatever the ratio."""
    return torch.arange(signals.grid.tokens)


def keep_uniform(signals: Signals, keep_ratio: float) -> Tensor:
    """Every n-th token in frame, row, column order: the simple alternative that SpecVLM's authors recommend."""
    return _evenly(torch.arange(signals.grid.tokens), budget(keep_ratio, signals.grid))


def keep_attention(signals: Signals, keep_ratio: float) -> Tensor:
    """The tokens with the most attention, not normalised: the position bias shows."""
    assert signals.attention is not None
    return keep_best(signals.attention, signals, keep_ratio)


def keep_specvlm(signals: Signals, keep_ratio: float) -> Tensor:
    """SpecVLM's rule: the top tokens that reach 40 % of the attention, the others evenly spread."""
    assert signals.attention is not None
    count = budget(keep_ratio, signals.grid)
    mass, order = signals.attention.float().cpu().sort(descending=True)
    if not mass.isfinite().all():
        return _uniform_instead(signals, keep_ratio)
    enough = int((mass.cumsum(0) < _SPECVLM_MASS * mass.sum()).sum()) + 1
    top, others = order[: min(enough, count)], order[min(enough, count) :].sort().values
    return torch.cat([top, _evenly(others, count - len(top))]).sort().values


def keep_hippo(signals: Signals, keep_ratio: float) -> Tensor:
    """The tokens with the highest fused score over all frames: frames with more to say keep more tokens."""
    return keep_best(signals.fused, signals, keep_ratio)


def fused_score(signals: Signals, attention: bool = True, temporal: bool = True, spatial: bool = True) -> Tensor:
    """(V,) float32: the fused score of each token, of those scores that are asked for."""
    grid, scores = signals.grid, signals.attention if attention else None
    fused = fuse(
        grid,
        attention=None if scores is None else grid.laid_out(scores).flatten(),
        temporal=temporal_score(signals.features, grid) if temporal else None,
        spatial=spatial_score(signals.features, grid) if spatial else None,
    )
    return grid.of_tokens(fused)


def top(score: Tensor, count: int) -> Tensor:
    """The `count` highest of (V,) scores. Returns indices, sorted, (count,) int64."""
    return score.topk(count).indices.sort().values


def keep_best(
    score: Tensor, signals: Signals, keep_ratio: float, spend: Callable[[Tensor, int], Tensor] = top
) -> Tensor:
    """The best tokens by score, (V,), as many as the ratio allows; evenly spread ones if the score says nothing. spend:
    (score on the CPU, count) -> kept indices."""
    if not score.isfinite().all() or bool((score == score[0]).all()):
        return _uniform_instead(signals, keep_ratio)
    return spend(score.cpu(), budget(keep_ratio, signals.grid))


def _uniform_instead(signals: Signals, keep_ratio: float) -> Tensor:
    warnings.warn("the video tokens' scores are all equal or not finite: evenly spread tokens are kept", stacklevel=2)
    return keep_uniform(signals, keep_ratio)


def _evenly(tokens: Tensor, count: int) -> Tensor:
    """`count` of `tokens`, evenly spread over them."""
    return tokens[((torch.arange(count) + 0.5) * len(tokens) / count).long()] if count else tokens[:0]


PRUNERS = {
    pruner.name: pruner
    for pruner in (
        Pruner("none", keep_all),
        Pruner("uniform", keep_uniform),
        Pruner("attention", keep_attention, Attention()),
        Pruner("specvlm", keep_specvlm, Attention()),
        Pruner("hippo", keep_hippo, Attention(outer_layers), lambda signals: signals.fused),
    )
}


def pruner_named(name: str | Pruner | Callable[[Signals, float], Tensor]) -> Pruner:
    """Look a pruner up, by a name that `SamplingParams.pruner` may have; a Pruner is returned as it is, and a function
    makes one. Raises BadRequest naming those there are."""
    if isinstance(name, str):
        if name in PRUNERS:
            return PRUNERS[name]
        found = plugins.load("pruner", name, PRUNERS)
        return replace(found, name=name) if isinstance(found, Pruner) else Pruner(name, found)
    return name if isinstance(name, Pruner) else Pruner(plugins.name_of(name), name)
