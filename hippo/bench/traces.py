"""What a draft would propose at every place of the target's own text, and what forwards cost: all that `replay` and
`ideal` need to know of two models."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from statistics import median
from typing import Any

from torch import Tensor

from hippo.bench.simulate import Guess
from hippo.device import on_threads
from hippo.families import Embeds, Family, Prompt
from hippo.forward import CachedModel

WIDTHS = (1, 2, 4, 8, 16, 25)  # of target forwards that are timed


def draft_rows(family: Family, draft: Any, prompt: Prompt, embeds: Embeds, kept: Tensor, answer: list[int]) -> Tensor:
    """(len(answer), vocabulary) logits of a draft that sees the video tokens `kept` and is told `answer`."""
    reader = prefilled(family, draft, prompt, embeds, kept)
    return reader.extend(answer)


def prefilled(
    family: Family, model: Any, prompt: Prompt, embeds: Embeds, kept: Tensor, may_fuse: bool = True
) -> CachedModel:
    """A model that has read a prompt of which it sees the video tokens `kept`."""
    reader, stays = CachedModel.of(family, model, may_fuse), prompt.keep(kept).to(embeds.tokens.device)
    reader.prefill_few(embeds[stays], prompt.positions[:, stays], prompt.next_position)
    return reader


def guesses(rows: Tensor, answer: list[int]) -> list[Guess]:
    """The draft's proposals for the tokens of `answer`. rows: (len(answer), vocabulary), its logits before each."""
    sure, tokens = rows.float().softmax(-1).max(-1)
    return [Guess(token == right, p) for token, right, p in zip(tokens.tolist(), answer, sure.tolist(), strict=True)]


def step_seconds(
    reader: CachedModel, width: int, steps: int, threads: int, before: Callable[[], None] = lambda: None
) -> float:
    """The median time of a forward over `width` tokens after the prompt, on so many threads. before: called before each
    of the forwards."""
    seconds = []
    with on_threads(threads):
        for _ in range(steps):
            before()
            reader.extend([0] * width)
            reader.rollback(width)
            seconds.append(reader.seconds)
    return median(seconds[steps // 4 :])


def by_width(seconds: dict[int, float]) -> Callable[[int], float]:
    """Seconds of a forward over n tokens: straight lines through those measured, and on beyond the widest."""
    widths = sorted(seconds)

    def cost(width: int) -> float:
        at = min(max(1, bisect_left(widths, width)), len(widths) - 1)
        left, right = widths[at - 1], widths[at]
        return seconds[left] + (seconds[right] - seconds[left]) * (width - left) / (right - left)

    return cost
