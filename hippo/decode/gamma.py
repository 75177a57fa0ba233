"""How many tokens the draft proposes at a time, and whether it is worth asking at all."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import NamedTuple

LARGEST = 24
_PATIENCE, _TRIAL, _REST, _LONGEST_REST = 6, 4, 16, 128  # rounds


class Plan(NamedTuple):
    """One round. gamma: tokens to propose while the target works (in turns: before it). lead: with nothing pending, the
    tokens to wait for before the target starts. Both 0: the target goes on alone."""

    gamma: int
    lead: int


class Costs:
    """Seconds of a target forward by its width, and of a draft step, from what was seen last."""

    def __init__(self) -> None:
        self._target: dict[int, deque[float]] = {}
        self._draft: deque[float] = deque(maxlen=24)

    @property
    def known(self) -> bool:
        """Whether both have been seen."""
        return bool(self._target and self._draft)

    def saw_target(self, width: int, seconds: float) -> None:
        """One target forward over `width` tokens."""
        self._target.setdefault(width, deque(maxlen=5)).append(seconds)

    def saw_draft(self, seconds: float) -> None:
        """One draft step."""
        self._draft.append(seconds)

    @property
    def draft(self) -> float:
        """Seconds of a draft step."""
        return max(median(self._draft), 1e-9)

    def target(self) -> tuple[float, float]:
        """(a, b): a forward over n tokens takes a + b n seconds, by least squares through the medians of each width. Of
        one width alone nothing can be learned about b; it is then a twenty-fifth of the whole (our choice)."""
        seen = [(width, median(seconds)) for width, seconds in self._target.items()]
        mean_width = sum(width for width, _ in seen) / len(seen)
        mean = sum(seconds for _, seconds in seen) / len(seen)
        spread = sum((width - mean_width) ** 2 for width, _ in seen)
        if not spread:
            return mean * (1 - 0.04 * min(mean_width, 20)), 0.04 * mean
        slope = sum((width - mean_width) * (seconds - mean) for width, seconds in seen) / spread
        slope = min(max(slope, 0.0), mean / mean_width)
        return mean - slope * mean_width, slope


class Gamma:
    """A fixed number, or `auto`: chosen anew from the costs and the acceptance measured in this very answer.

    overlapped: whether draft and target work at the same time. auto is the gamma, and overlapped the lead, with the
    most expected tokens a second if each drafted token is accepted with the rate seen so far (our choice; the prior of
    0.8 is worth 4 tokens). PEARL's gamma = T_target / T_draft with no lead is the case where nothing is ever rejected.
    When rounds with a draft turn out slower than the target alone, the draft rests, and is tried again now and then.
    """

    def __init__(self, value: int | str, overlapped: bool) -> None:
        self._fixed = Plan(value, 0) if isinstance(value, int) else None
        self._overlapped = overlapped
        self._costs = Costs()
        self._accepted, self._checked = 3.2, 4.0
        self._alone: deque[float] = deque(maxlen=9)  # seconds a token, in rounds without a draft
        self._together: deque[tuple[int, float]] = deque(maxlen=_PATIENCE)
        self._resting, self._rest = 0, _REST
        self._planned = Plan(0, 0)
        self._waking = False

    def next(self) -> Plan:
        """The plan for the next round."""
        if self._resting:
            self._resting -= 1
            self._planned, self._waking = Plan(0, 0), True
        else:
            self._planned = self._fixed or self._auto()
        return self._planned

    def saw_target(self, width: int, seconds: float) -> None:
        """One target forward over `width` tokens took this long."""
        if not self._waking:  # while the draft rests it has more cores
            self._costs.saw_target(width, seconds)

    def saw_draft(self, seconds: float) -> None:
        """One draft step took this long."""
        self._costs.saw_draft(seconds)

    def saw_verdict(self, accepted: int, checked: int) -> None:
        """So many drafted tokens stood of those checked."""
        self._accepted += accepted
        self._checked += checked

    def saw_round(self, tokens: int, seconds: float) -> None:
        """The round planned last brought so many tokens in so many seconds."""
        if self._fixed or not self._costs.known:
            return
        if not self._planned.gamma:
            self._alone.append(seconds / tokens)
            return
        if self._waking:  # the draft had to read first what was said while it rested
            self._waking = False
            return
        self._together.append((tokens, seconds))
        if len(self._together) < (_TRIAL if self._rest > _REST else _PATIENCE):
            return
        # One hiccup of the machine does not count against the draft.
        rounds = sorted(self._together, key=lambda one: one[1] / one[0])[:-1]
        speed = sum(seconds for _, seconds in rounds) / sum(tokens for tokens, _ in rounds)
        if not self._alone:
            if speed > 0.8 * sum(self._costs.target()):
                self._resting = _TRIAL  # to see how fast the target is when nothing disturbs it
        elif speed > median(self._alone):
            self._resting, self._rest = self._rest, min(2 * self._rest, _LONGEST_REST)
            self._together.clear()
        else:
            self._rest = _REST

    def _auto(self) -> Plan:
        if not self._costs.known:
            return Plan(4, 0)
        rate = min(0.995, self._accepted / self._checked)
        fixed, slope = self._costs.target()
        draft = self._costs.draft
        tokens = [0.0]  # tokens[n + 1]: expected if n drafted ones are checked and the target's own follows
        for n in range(LARGEST + 1):
            tokens.append(tokens[-1] + rate**n)

        def target(width: int) -> float:
            return fixed + slope * width

        if not self._overlapped:
            speeds = {gamma: tokens[gamma + 1] / (gamma * draft + target(gamma + 1)) for gamma in range(1, LARGEST + 1)}
            return Plan(max(speeds, key=lambda gamma: speeds[gamma]), 0)
        best, fastest = Plan(1, 0), 0.0
        for gamma in range(1, LARGEST + 1):
            # With tokens pending, rounds check gamma tokens and repeat while all are accepted.
            again = rate**gamma
            more = tokens[gamma] / (1 - again), max(target(gamma), gamma * draft) / (1 - again)
            for lead in range(0, LARGEST - gamma + 1):
                # With nothing pending, one checks lead + 1; if all stand, the rest of the chunk is waited for.
                stays, checked = rate ** (lead + 1), lead * draft + target(lead + 1)
                parts = max(checked, (lead + 1) * draft), max(checked, (lead + gamma) * draft)
                seconds = (1 - stays) * parts[0] + stays * (parts[1] + more[1])
                speed = (tokens[lead + 1] + stays * more[0]) / seconds
                if speed > fastest:
                    best, fastest = Plan(gamma, lead), speed
        return best
