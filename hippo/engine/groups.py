"""Two groups of requests: the draft works for one while the target checks the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from hippo.decode import Costs
from hippo.tensor_parallel import broadcast


class Member(Protocol):
    """What groups need of a request, see `hippo.sequence.Sequence`."""

    @property
    def proposed(self) -> bool:
        """Whether the draft was asked for tokens that are not checked yet."""

    def promises(self, size: int) -> tuple[float, float] | None:
        """Tokens a second among `size` requests in one group and in two; None where two are not possible."""


Some = TypeVar("Some", bound=Member)


class Groups:
    """Says in each step whether there are two groups, and whose turn it is to be checked.

    In every step the draft is asked for all requests that it was not asked for yet. In one group, all are then checked.
    In two, those are checked that the draft was asked for in an earlier step, at most half of all. So groups follow
    from who was asked when, and stay equal while requests come and go.

    costs: where steps of two groups are measured; None without a draft. fixed: one group (False) or two (True) whatever
    they promise, for studies.
    """

    _STEPS = 4  # after which the choice is made again
    # Of one group's speed, from which on two begin, and go on: promises err, and the first step of two has no overlap.
    _BEGIN, _GO_ON = 1.15, 1.05

    def __init__(self, costs: Costs | None, fixed: bool | None = None) -> None:
        self._costs, self.fixed = costs, fixed
        self.two = False
        self._count, self._left = 0, 0
        self._drafted: list[Member] = []

    def begin_step(self, members: Sequence[Member]) -> None:
        """Choose between one group and two for the requests that decode. Nothing was asked in this step yet."""
        self._drafted = [member for member in members if member.proposed]
        if not self._left or len(members) != self._count:
            two = self._promise_more(members) if self.fixed is None else self.fixed
            self.two = broadcast(two and len(members) > 1)
            self._count, self._left = len(members), self._STEPS
        self._left -= 1

    def due(self, members: Sequence[Some]) -> list[Some]:
        """Those to be checked in this step. members: whose draft has been asked."""
        if not self.two:
            return list(members)
        drafted = [member for member in members if member in self._drafted]
        return (drafted or list(members))[: (len(members) + 1) // 2]

    def end_step(self, widths: Sequence[int], seconds: float) -> None:
        """Forwards over so many tokens of each request were made in this step, which took so many seconds."""
        if self.two and self._drafted and widths and self._costs is not None:
            self._costs.in_groups.saw_target(round(sum(widths) / len(widths)), seconds, both=True)

    def _promise_more(self, members: Sequence[Member]) -> bool:
        one = two = 0.0
        for member in members:
            if (promises := member.promises(len(members))) is None:
                return False
            one, two = one + promises[0], two + promises[1]
        return two > (self._GO_ON if self.two else self._BEGIN) * one
