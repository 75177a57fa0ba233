"""How long decoding takes on a simulated machine: the package's own loop and policies, with two models and a clock that
are stand-ins. It is the test bed of schedules, and the yardstick for the real loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from hippo.decode import Answer, AutoSchedule, Check, Pause, Rounds, Schedule, StopRule, Verifier, alone, decode
from hippo.draft import Proposal
from hippo.engine import Together
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
        self.forwards, self.seconds, self.width, self.longest, self.widest = 0, 0.0, 0, 0, 0

    def extend(self, ids: Sequence[int]) -> Tensor:
        self.width = self.longest = len(ids)
        self.seconds = self._machine.target(self.width)
        self._machine.now += self.seconds
        self.forwards += 1
        return torch.tensor([[1.0, 0.0]]).expand(len(ids), 2)

    def rollback(self, count: int) -> None:
        pass


class _Proposals:
    """Drafted tokens that wait to be taken, each with its cost and the time it is there."""

    lost = False
    answer: Answer

    def __init__(self, machine: Machine, guesses: Sequence[Guess], schedule: Schedule) -> None:
        self._machine, self._guesses, self._schedule = machine, guesses, schedule
        self._drafted: deque[tuple[Proposal, float, float]] = deque()
        self._next = 0

    def _draft(self, cost: float, there: float) -> None:
        right, prob = self._guesses[self._next] if self._next < len(self._guesses) else Guess(False, 0.0)
        self._drafted.append((Proposal(_RIGHT if right else _WRONG, prob), cost, there))
        self._next += 1

    def peek(self) -> Proposal | None:
        return self._drafted[0][0] if self._drafted and self._drafted[0][2] <= self._machine.now else None

    def _pop(self) -> Proposal:
        proposal, cost, there = self._drafted.popleft()
        self._machine.now = max(self._machine.now, there)
        self._schedule.saw_draft(cost)
        return proposal


class _Draft(_Proposals):
    """Stands for a Drafter: a token takes its time, whatever the target does meanwhile."""

    def __init__(self, machine: Machine, guesses: Sequence[Guess], schedule: Schedule, begins: float) -> None:
        super().__init__(machine, guesses, schedule)
        self._begins, self._free = begins, 0.0

    def ready(self) -> bool:
        return self._machine.now >= self._begins

    @property
    def waiting(self) -> int:
        return len(self._drafted)

    def propose(self, count: int) -> None:
        for _ in range(count):
            cost = self._machine.draft
            self._free = max(self._free, self._machine.now) + cost
            self._draft(cost, self._free)

    def take(self, count: int) -> list[Proposal]:
        return [self._pop() for _ in range(min(count, len(self._drafted)))]

    def commit(self, length: int, tokens: Sequence[int]) -> None:
        self._drafted.clear()
        self._next, self._free = length + len(tokens) - 1, self._machine.now


def simulate(guesses: Sequence[Guess], machine: Machine, schedule: Schedule, begins: float = 0.0) -> Simulated:
    """Decode an answer whose tokens after the first are guessed like this.

    begins: seconds after the first token until the draft has read its prompt; until then the target works alone.
    """
    target, draft = _Target(machine), _Draft(machine, guesses, schedule, begins)
    for _ in alone(_rounds(guesses, machine, target, draft, schedule, machine.share), target.extend):
        pass
    return Simulated(machine.now, target.forwards)


def _rounds(
    guesses: Sequence[Guess],
    machine: Machine,
    target: Any,
    draft: Any,
    schedule: Schedule,
    share: Callable[[bool], None],
) -> Rounds:
    stats = Stats()
    verifier = Verifier(SamplingParams(), LogitsProcessorList(), torch.tensor([_RIGHT]))
    answer = Answer(verifier, StopRule([], len(guesses) + 1), stats)
    draft.answer = answer
    draft.commit(0, answer.commit(answer.verify(torch.tensor([[1.0, 0.0]]), [])))
    return decode(answer, target, draft, schedule, stats, share, lambda: machine.now)


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


class _SharedDraft:
    """The draft's side of several requests: a step is for all that want tokens, and one that has begun ends. more:
    share of a step that each further request adds."""

    def __init__(self, machine: Machine, more: float) -> None:
        self._machine, self._more, self._free = machine, more, 0.0
        self.members: list[_Member] = []
        self.beside: list[bool] = []  # of the requests asked in this step

    def step(self) -> None:
        wanting = [member for member in self.members if member.wanted]
        cost = self._machine.draft * (1 + self._more * (len(wanting) - 1))
        self._free += cost
        for member in wanting:
            member.was_drafted(cost, self._free)

    def work(self) -> None:
        """Take all steps that have begun by now."""
        while self._free < self._machine.now and any(member.wanted for member in self.members):
            self.step()
        self._free = max(self._free, self._machine.now)


class _Member(_Proposals):
    """A request of several, in the places of a `Sequence` and of its Drafter."""

    proposed, drafts = False, True
    seconds, width, longest, widest = 0.0, 0, 0, 0

    def __init__(self, guesses: Sequence[Guess], machine: Machine, shared: _SharedDraft, schedule: Schedule) -> None:
        super().__init__(machine, guesses, schedule)
        self.schedule = schedule
        self._shared, self.wanted = shared, 0
        shared.members.append(self)
        self._rounds = _rounds(guesses, machine, self, self, schedule, shared.beside.append)

    def advance(self, logits: Tensor | None = None) -> Check | Pause | list[int] | None:
        wanted = self._rounds.send(logits)
        self.proposed = wanted is Pause.PROPOSED
        return wanted

    @property
    def room(self) -> int:
        return self.answer.room

    def rollback(self, count: int) -> None:
        pass

    def ready(self) -> bool:
        return True

    @property
    def waiting(self) -> int:
        return self.wanted + len(self._drafted)

    def propose(self, count: int) -> None:
        self._shared.work()
        self.wanted += max(0, count)

    def was_drafted(self, cost: float, there: float) -> None:
        self._draft(cost, there)
        self.wanted -= 1

    def peek(self) -> Proposal | None:
        self._shared.work()
        return super().peek()

    def take(self, count: int) -> list[Proposal]:
        taken: list[Proposal] = []
        while len(taken) < count and self.waiting:
            if self._drafted:
                taken.append(self._pop())
            else:
                self._shared.step()
        return taken

    def commit(self, length: int, tokens: Sequence[int]) -> None:
        self._shared.work()
        self._drafted.clear()
        self._next, self.wanted = length + len(tokens) - 1, 0


def simulate_together(
    answers: Sequence[Sequence[Guess]],
    machine: Machine,
    schedule: Callable[[int], Schedule],
    way: Together,
    apart: bool = False,
    more: float = 0.1,
    running: int | None = None,
) -> float:
    """Seconds in which several answers are decoded together, in the steps of `hippo.engine`.

    machine: a forward costs what its target does for the tokens of all requests in it. schedule: of an answer, by its
    place, when it begins. apart: each request has a forward of its own, one after another. more: share of a draft step
    that each further request adds. running: how many are decoded together, the next when one has ended; None: all.
    """
    shared = _SharedDraft(machine, more)
    waiting, members = deque(enumerate(answers)), list[_Member]()
    while waiting or members:
        while waiting and (running is None or len(members) < running):
            place, guesses = waiting.popleft()
            members.append(_Member(guesses, machine, shared, schedule(place)))
        began = machine.now
        way.begin_step(members)
        shared.beside.clear()
        for member in members:
            member.schedule.join(len(members), way.mode, way.rates)
            if not member.proposed:
                member.advance()
        machine.share(any(shared.beside))
        due = way.due(members)
        checks = [(member, wanted.ids) for member in due if isinstance(wanted := member.advance(), Check)]
        widths = [len(ids) for _, ids in checks]
        seconds = sum(map(machine.target, widths if apart else [sum(widths)])) if checks else 0.0
        machine.now += seconds
        tokens = 0
        for member, ids in checks:
            member.seconds, member.width = seconds, round(sum(widths) / len(checks))
            member.longest = max(widths)
            committed: Any = member.advance(torch.tensor([[1.0, 0.0]]).expand(len(ids), 2))
            tokens += len(committed)
        way.end_step([member for member, _ in checks], widths, seconds, machine.now - began, tokens)
        members = [member for member in members if not member.answer.done]
        shared.members = list(members)
    return machine.now
