"""A pair whose verdicts are drawn at a given rate: what a draft of that quality would bring, whatever the weights are.

Everything else is real: the models run, with all their costs, only what they say does not count. All figures from it
are synthetic.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList

from hippo.decode import Chooser, Sampling, StopRule
from hippo.draft import Drafter, Proposal
from hippo.families import Prompt
from hippo.options import Options
from hippo.pair import Pair


class RatedPair(Pair):
    """rate: the chance of each drafted token to stand, in [0, 1]. seed: of the draws, anew for each answer. An answer
    ends only at its length."""

    def __init__(self, *models: Any, rate: float, seed: int = 0, **others: Any) -> None:
        super().__init__(*models, **others)
        self._rate, self._seed = rate, seed

    def _drafter(self, *known: Any) -> Drafter:
        return _RatedDrafter(self._rate, *known)

    def _chooser(self, prompt: Prompt, options: Options) -> Chooser:
        return _RatedChooser(self._rate, self._seed, prompt.input_ids)

    def _stop(self, options: Options, decode: Callable[[list[int]], str] | None) -> StopRule:
        return StopRule([], options.max_new_tokens)


class _RatedChooser(Chooser):
    """Draws for every place of the answer whether a draft is right there, once, so that all methods meet the same."""

    def __init__(self, rate: float, seed: int, prompt_ids: Tensor) -> None:
        super().__init__(Sampling(), LogitsProcessorList(), prompt_ids)
        self._rate, self._seed, self._before = rate, seed, len(prompt_ids)

    def choose(self, rows: Tensor, drafted: list[int]) -> tuple[int, int | None]:
        own, first = rows.argmax(dim=-1).tolist(), len(self._ids) - self._before
        for place in range(len(drafted)):
            if not stands(self._rate, self._seed, first + place):
                return place, own[place]
        return len(drafted), own[len(drafted)] if len(own) > len(drafted) else None


class _RatedDrafter(Drafter):
    """Proposals that are as sure as they are good."""

    def __init__(self, rate: float, *known: Any) -> None:
        super().__init__(*known)
        self._rate = rate

    def coming(self) -> Proposal | None:
        proposal = super().coming()
        return None if proposal is None else proposal._replace(sure=self._rate)

    def collect(self, count: int) -> list[Proposal]:
        return [proposal._replace(sure=self._rate) for proposal in super().collect(count)]


def stands(rate: float, seed: int, place: int) -> bool:
    """Whether a token drafted for this place of the text is right."""
    return random.Random(f"{seed} {place}").random() < rate
