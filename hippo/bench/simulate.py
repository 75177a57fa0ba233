"""How long decoding takes on a simulated machine: the package's own loop and policies, with two models and a clock that
are stand-ins. It is the test bed of schedules, and the yardstick for the real loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from hippo.decode import Answer, AutoSchedule, Schedule, StopRule, Verifier, alone, decode
from hippo.draft import Proposal
from hippo.params import SamplingParams
from hippo.stats import Stats

_RIGHT, _WRONG = 0, 1  # the only tokens there are: the target always says the first


class Guess(NamedTuple):
    """What the draft would propose at one place of the target's own text. prob: its probability of it."""

    right: bool
    prob: float


class Simulated(NamedTuple):
    """seconds: from the first token to the last. forwards: of the target."""

    seconds: float
    forwards: int


class Machine:
    """A clock, and what a target forward over n tokens and a draft step cost, alone and while the other model works.

    slowdown: factors (target, draft) on these costs while both work at the same time; 1 where they do not share
    anything.
    """

    def __init__(
        self, target: Callable[[int], float], draft: float, slowdown: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        self._target, self._draft, self._slowdown = target, draft, slowdown
        self.now, self.both = 0.0, False

    def target(self, width: int) -> float:
        """Seconds of a target forward over `width` tokens."""
        return self._target(width) * (self._slowdown[0] if self.both else 1.0)

    @property
    def draft(self) -> float:
        """Seconds of a draft step."""
        return self._draft * (self._slowdown[1] if self.both else 1.0)

    def share(self, both: bool) -> None:
        """Whether both models work in this round."""
        self.both = both


class _Target:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.forwards, self.seconds, self.widest = 0, 0.0, 0

    def extend(self, ids: Sequence[int]) -> Tensor:
        self.seconds = self._machine.target(len(ids))
        self._machine.now += self.seconds
        self.forwards += 1
        return torch.tensor([[1.0, 0.0]]).expand(len(ids), 2)

    def rollback(self, count: int) -> None:
        pass


class _Draft:
    """Stands for a Drafter: a token takes its time, whatever the target does meanwhile."""

    lost = False

    def __init__(self, machine: Machine, guesses: Sequence[Guess], schedule: Schedule, begins: float) -> None:
        self._machine, self._guesses, self._schedule, self._begins = machine, guesses, schedule, begins
        self._drafted: deque[tuple[Proposal, float, float]] = deque()  # with its cost and the time it is there
        self._next, self._free = 0, 0.0

    def ready(self) -> bool:
        return self._machine.now >= self._begins

    @property
    def waiting(self) -> int:
        return len(self._drafted)

    def propose(self, count: int) -> None:
        for _ in range(count):
            cost = self._machine.draft
            self._free = max(self._free, self._machine.now) + cost
            right, prob = self._guesses[self._next] if self._next < len(self._guesses) else Guess(False, 0.0)
            self._drafted.append((Proposal(_RIGHT if right else _WRONG, prob), cost, self._free))
            self._next += 1

    def peek(self) -> Proposal | None:
        return self._drafted[0][0] if self._drafted and self._drafted[0][2] <= self._machine.now else None

    def take(self, count: int) -> list[Proposal]:
        taken: list[Proposal] = []
        while self._drafted and len(taken) < count:
            proposal, cost, there = self._drafted.popleft()
            self._machine.now = max(self._machine.now, there)
            self._schedule.saw_draft(cost)
            taken.append(proposal)
        return taken

    def commit(self, length: int, tokens: Sequence[int]) -> None:
        self._drafted.clear()
        self._next, self._free = length + len(tokens) - 1, self._machine.now


def simulate(guesses: Sequence[Guess], machine: Machine, schedule: Schedule, begins: float = 0.0) -> Simulated:
    """Decode an answer whose tokens after the first are guessed like this.

    begins: seconds after the first token until the draft has read its prompt; until then the target works alone.
    """
    stats = Stats()
    models: tuple[Any, Any] = _Target(machine), _Draft(machine, guesses, schedule, begins)
    verifier = Verifier(SamplingParams(), LogitsProcessorList(), torch.tensor([_RIGHT]))
    answer = Answer(verifier, StopRule([], len(guesses) + 1), stats)
    models[1].commit(0, answer.commit(answer.verify(torch.tensor([[1.0, 0.0]]), [])))
    rounds = decode(answer, *models, schedule, stats, machine.share, lambda: machine.now)
    for _ in alone(rounds, models[0].extend):
        pass
    return Simulated(machine.now, models[0].forwards)


def ideal(
    guesses: Sequence[Guess],
    target: Callable[[int], float],
    draft: float,
    decoder: str,
    gamma: int | str = "auto",
    begins: float = 0.0,
) -> Simulated:
    """`simulate` on a machine on which neither model slows the other. target: seconds of a forward over n tokens."""
    schedule = AutoSchedule(True, gamma) if decoder == "auto" else Schedule(decoder, gamma)
    return simulate(guesses, Machine(target, draft), schedule, begins)
