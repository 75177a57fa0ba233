"""How long decoding takes on a machine without any overhead: the yardstick for the real one, and the answer to "what
would a quicker draft bring" before anybody builds it.

The decoders are the package's own; only the two models and the clock are stand-ins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from hippo.decode import Chooser, Gamma, Sampling, Session, StopRule, decoder_named
from hippo.draft import Proposal
from hippo.report.stats import Stats

_RIGHT, _WRONG = 0, 1  # the only tokens there are: the target always says the first


class Guess(NamedTuple):
    """What the draft would propose at one place of the target's own text. sure: its probability of it."""

    right: bool
    sure: float


class Ideal(NamedTuple):
    """seconds: from the first token to the last. forwards: of the target."""

    seconds: float
    forwards: int


class _Clock:
    now = 0.0


class _Target:
    def __init__(self, clock: _Clock, cost: Callable[[int], float]) -> None:
        self._clock, self._cost = clock, cost
        self.forwards, self.seconds = 0, 0.0

    def extend(self, ids: Sequence[int]) -> Tensor:
        self.seconds = self._cost(len(ids))
        self._clock.now += self.seconds
        self.forwards += 1
        return torch.tensor([[1.0, 0.0]]).expand(len(ids), 2)

    def rollback(self, count: int) -> None:
        pass


class _Draft:
    """Stands for a Drafter: a token takes its time, whatever the target does meanwhile."""

    lost = False

    def __init__(
        self,
        clock: _Clock,
        guesses: Sequence[Guess],
        cost: float,
        on_step: Callable[[float], None],
        begins: float,
    ) -> None:
        self._clock, self._guesses, self._cost, self._on_step, self._begins = clock, guesses, cost, on_step, begins
        self._drafted: deque[tuple[Proposal, float]] = deque()  # with the time it is there
        self._next, self._free = 0, 0.0

    def ready(self) -> bool:
        return self._clock.now >= self._begins

    @property
    def waiting(self) -> int:
        return len(self._drafted)

    def propose(self, count: int) -> None:
        for _ in range(count):
            self._free = max(self._free, self._clock.now) + self._cost
            right, sure = self._guesses[self._next] if self._next < len(self._guesses) else Guess(False, 0.0)
            self._drafted.append((Proposal(_RIGHT if right else _WRONG, sure), self._free))
            self._next += 1

    def coming(self) -> Proposal | None:
        return self._drafted[0][0] if self._drafted and self._drafted[0][1] <= self._clock.now else None

    def collect(self, count: int) -> list[Proposal]:
        taken: list[Proposal] = []
        while self._drafted and len(taken) < count:
            proposal, there = self._drafted.popleft()
            self._clock.now = max(self._clock.now, there)
            self._on_step(self._cost)
            taken.append(proposal)
        return taken

    def settle(self, stands: int, tokens: Sequence[int]) -> None:
        self._drafted.clear()
        self._next, self._free = stands + len(tokens) - 1, self._clock.now


def ideal(
    guesses: Sequence[Guess],
    target: Callable[[int], float],
    draft: float,
    decoder: str,
    gamma: int | str = "auto",
    begins: float = 0.0,
) -> Ideal:
    """Decode an answer whose tokens after the first are guessed like this.

    target: seconds of a target forward over n tokens. draft: seconds of a draft step. decoder: ar, serial, parallel.
    begins: seconds after the first token until the draft has read its prompt; until then the target works alone.
    """
    clock, stats = _Clock(), Stats()
    policy = Gamma(gamma, overlapped=decoder == "parallel")
    models: tuple[Any, Any] = _Target(clock, target), _Draft(clock, guesses, draft, policy.saw_draft, begins)
    chooser, stop = Chooser(Sampling(), LogitsProcessorList(), torch.tensor([_RIGHT])), StopRule([], len(guesses) + 1)
    session = Session(models[0], chooser, stop, policy, stats, now=lambda: clock.now)
    models[1].settle(0, session.start(torch.tensor([1.0, 0.0])))
    for _ in decoder_named(decoder)(session, models[1]):
        pass
    return Ideal(clock.now, models[0].forwards)
