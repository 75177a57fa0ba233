"""A pair whose verdicts are drawn at a given rate: what a draft of that quality would bring, whatever the weights are.

Everything else is real: the models run, with all their costs, only what they say does not count. All figures from it
are synthetic.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList

from hippo.decode import Answer, StopRule, Verdict, Verifier
from hippo.draft import Drafter, Proposal
from hippo.families import Prompt
from hippo.pair import Pair
from hippo.params import SamplingParams
from hippo.sequence import Sequence
from hippo.stats import Stats


class SyntheticPair(Pair):
    """rate: the chance of each drafted token to be accepted, in [0, 1]. seed: of the draws, anew for each answer."""

    def __init__(self, *models: Any, rate: float, seed: int = 0) -> None:
        super().__init__(*models)
        self.rate, self.seed = rate, seed

    def drafter(self, stats: Stats, on_step: Any, own_inputs: bool, late: bool = False) -> Drafter:
        """A draft whose probabilities are the rate."""
        return _SyntheticDrafter(super().drafter(stats, on_step, own_inputs, late), self.rate)  # type: ignore

    def sequence(self, inputs: dict[str, Any], params: SamplingParams, stats: Stats) -> Sequence:
        """A request, which ends only at its length."""
        return _SyntheticSequence(self, inputs, params, stats)


class _SyntheticSequence(Sequence):
    def answer(self, prompt: Prompt) -> Answer:
        assert isinstance(self.pair, SyntheticPair)
        verifier = _SyntheticVerifier(self.pair.rate, self.pair.seed, prompt.input_ids)
        return Answer(verifier, StopRule([], self.params.max_new_tokens), self.stats)


class _SyntheticVerifier(Verifier):
    """Draws for every place of the answer whether a draft is right there, once, so that all methods meet the same."""

    def __init__(self, rate: float, seed: int, prompt_ids: Tensor) -> None:
        super().__init__(SamplingParams(), LogitsProcessorList(), prompt_ids)
        self._rate, self._draws, self._before = rate, seed, len(prompt_ids)

    def verify(self, logits: Tensor, drafted: SequenceOf[int]) -> Verdict:
        own, first = logits.argmax(dim=-1).tolist(), len(self._ids) - self._before
        for place in range(len(drafted)):
            if not accepts(self._rate, self._draws, first + place):
                return Verdict(list(drafted[:place]), own[place], True)
        return Verdict(list(drafted), own[len(drafted)] if len(own) > len(drafted) else None, False)


class _SyntheticDrafter:
    """Proposals that are as sure as they are good."""

    def __init__(self, drafter: Drafter, rate: float) -> None:
        self._drafter, self._rate = drafter, rate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def peek(self) -> Proposal | None:
        proposal = self._drafter.peek()
        return None if proposal is None else proposal._replace(prob=self._rate)

    def take(self, count: int) -> list[Proposal]:
        return [proposal._replace(prob=self._rate) for proposal in self._drafter.take(count)]


def accepts(rate: float, seed: int, place: int) -> bool:
    """Whether a token drafted for this place of the text is right."""
    return random.Random(f"{seed} {place}").random() < rate
