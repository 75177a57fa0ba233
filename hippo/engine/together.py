"""How several requests decode together: in which way, in one group or two, and whose turn it is to be checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from hippo.decode import Choice, Costs, Mode, Schedule, ways_of
from hippo.tensor_parallel import broadcast


class Member(Protocol):
    """What is needed of a request, see `hippo.sequence.Sequence`."""

    @property
    def schedule(self) -> Schedule:
        """Its acceptance, and what it measures."""

    @property
    def drafts(self) -> bool:
        """Whether it has a draft."""

    @property
    def proposed(self) -> bool:
        """Whether the draft was asked for tokens that are not checked yet."""

    @property
    def room(self) -> int:
        """Tokens that its answer may still have."""


Some = TypeVar("Some", bound=Member)


class Together:
    """Chooses in each step the way in which all requests decode that leave it open: the time of a step is that of the
    longest of them. Measures what steps cost.

    In every step the draft is asked for all requests that it was not asked for yet. In one group, all are then checked.
    In two, in which the draft works for one while the target checks the other, those are checked that the draft was
    asked for in an earlier step, at most half of all. So groups follow from who was asked when, and stay equal while
    requests come and go.

    costs: of the pair; None without a draft. beside: whether the draft can work at the same time as the target; if not,
    it reads a prompt when it is first asked, and all wait. answer: how many tokens an answer has. fixed: one group
    (False) or two (True) whatever they promise, for studies.
    """

    _STEPS = 4  # that two groups last at least

    def __init__(
        self,
        costs: Costs | None,
        beside: bool = True,
        fixed: bool | None = None,
        answer: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self._costs, self._beside, self.fixed, self._answer = costs or Costs(), beside, fixed, answer
        self._choice = Choice(self._costs)
        self.mode = Mode.PLAIN
        self.rates: list[float] = []
        self._left, self._chosen, self._coming = 0, False, 0
        self._drafted: list[Member] = []

    @property
    def two(self) -> bool:
        """Whether there are two groups."""
        return self.mode is Mode.GROUPS

    def begin_step(self, members: Sequence[Member], coming: int = 0) -> None:
        """Choose the way of all requests that decode. Nothing was asked in this step yet. coming: requests that will
        decode with them soon."""
        self._coming = coming
        self._costs.serve(len(members) + coming)
        if coming and not self._costs.enough(both=False):
            self._costs.serve(len(members))
        self._drafted = [member for member in members if member.proposed]
        self.rates = [member.schedule.acceptance.rate if member.drafts else 0.0 for member in members]
        self._left = max(0, self._left - 1) if self._can_be_two(members) else 0
        if not self._left:
            self._chosen = False
            self.mode = broadcast(self._choose(members))
            self._left = self._STEPS if self.two else 0

    def due(self, members: Sequence[Some]) -> list[Some]:
        """Those to be checked in this step. members: whose draft has been asked."""
        if not self.two:
            return list(members)
        drafted = [member for member in members if member in self._drafted]
        return (drafted or list(members))[: (len(members) + 1) // 2]

    def end_step(
        self, due: Sequence[Member], widths: Sequence[int], forward: float, seconds: float, tokens: int
    ) -> None:
        """Forwards over so many tokens of the requests that were due took `forward` seconds. The step took `seconds`
        and brought so many tokens."""
        if not widths:
            return
        width, schedules = _mean_width(widths), [member.schedule for member in due]
        waking = any(schedule.waking for schedule in schedules)
        # What catching up costs is paid once, and a promise for more requests than there are yet says nothing.
        if self._chosen and not waking and not self._coming:
            self._choice.saw_tokens(tokens, seconds, len(self.rates) if self.two else len(due))
        if self.two:
            if self._drafted:  # else there was no overlap
                self._costs.in_groups.saw_target(width, seconds, both=True)
            return
        self._costs.serve(len(widths))
        both = any(schedule.mode is Mode.PARALLEL for schedule in schedules)
        self._costs.saw_target(width, forward, both)
        if both:
            return
        asking = [schedule.asking for schedule in schedules]
        if drafted := max(schedule.drafted for schedule in schedules):
            if not waking:  # all that a drafted token costs the step, messages included
                self._costs.saw_draft(max(0.0, seconds - forward) / drafted, both=False)
            elif not self._costs.enough(both=False) and (steps := max(asking, key=len)[1:]):  # the first catches up
                self._costs.saw_draft(min(steps), both=False)
        elif self.mode is Mode.IN_TURNS:
            self._choice.saw_nothing(max(map(sum, asking)))

    def _choose(self, members: Sequence[Member]) -> Mode:
        drafting = [member.schedule for member in members if member.drafts]
        left = sum(min(self._answer(), member.room) for member in members) / len(members)
        open_ones = [schedule for schedule in drafting if schedule.follows]
        two = self.fixed is not False and self._can_be_two(members)
        if two and self.fixed:
            return Mode.GROUPS
        if not drafting or not (two or open_ones):
            return Mode.PLAIN
        ways = ways_of(self._beside) if open_ones else (Mode.IN_TURNS,)
        if two:
            ways = (*ways, Mode.GROUPS)
        least, most = (min(schedule.gammas[place] for schedule in drafting) for place in (0, 1))
        self._chosen = True
        return self._choice.choose(self.rates, ways, (least, most), *self._reading(drafting, left))

    def _reading(self, drafting: Sequence[Schedule], left: float) -> tuple[float, float]:
        """Seconds that the target would wait until the draft has read what it has not read yet, and seconds a token
        that it waits if those are spread over answers. left: tokens of an answer that are left."""
        if self._beside or not self._costs.prompts:
            return 0.0, 0.0
        length, seconds = self._costs.prompts[-1]
        unread = [length * schedule.unread + schedule.behind for schedule in drafting]
        now = sum(map(self._costs.prompt, filter(None, unread)))
        spread = len(drafting) * seconds / self._answer()
        return now, max(spread, now / max(1.0, left)) if self.mode is Mode.PLAIN else spread

    def _can_be_two(self, members: Sequence[Member]) -> bool:
        every = all(member.drafts and member.schedule.in_turns for member in members)
        return self._beside and len(members) > 1 and every


def _mean_width(widths: Sequence[int]) -> float:
    """Tokens of a request in a forward, in halves. Only where all have one token is it 1."""
    mean = round(2 * sum(widths) / len(widths)) / 2
    return mean if max(widths) == 1 else max(1.5, mean)
