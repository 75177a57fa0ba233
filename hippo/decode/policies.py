"""How far to draft, and when the draft rests: small policies that `Schedule` puts together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Protocol

from hippo.decode.costs import LARGEST, Acceptance, Costs, groups_speed, in_turns_speed


class Lookahead(Protocol):
    """How many tokens to draft, and which of them the target checks."""

    def begin_round(self, rates: Sequence[float]) -> None:
        """Adapt to what was measured. rates: the acceptance of each request that decodes in this round."""

    def ask(self, waiting: int) -> int:
        """How many more tokens to ask the draft for while so many are waiting to be drafted or checked."""

    def wants(self, probs: Sequence[float], coming: float | None, pre_verify: bool) -> bool:
        """Whether the target shall check one more token than those in the window.

        probs: the draft's probabilities of the tokens in the window. coming: that of the next token, None if it has to
        be waited for. pre_verify: nothing is drafted beyond the answer yet.
        """

    def end_round(self, tokens: int, seconds: float) -> None:
        """A round in which the draft worked brought so many tokens in so many seconds."""


class FixedGamma:
    """`gamma` tokens at a time: in turns all of them, in parallel as PEARL does.

    In parallel, the target starts at once when nothing is pending (pre-verify). Else it waits for all but one of the
    chunk (post-verify).
    """

    def __init__(self, gamma: int, parallel: bool) -> None:
        self._gamma, self._parallel = gamma, parallel

    def begin_round(self, rates: Sequence[float]) -> None:
        """Nothing to adapt."""

    def ask(self, waiting: int) -> int:
        """See Lookahead."""
        return self._gamma

    def wants(self, probs: Sequence[float], coming: float | None, pre_verify: bool) -> bool:
        """See Lookahead."""
        if self._parallel:
            return len(probs) < (0 if pre_verify else self._gamma - 1)
        return len(probs) < self._gamma

    def end_round(self, tokens: int, seconds: float) -> None:
        """Nothing to learn."""


class InTurns:
    """In turns: draft as long as the next token's chance is worth a draft step and a wider forward."""

    _FIRST = 4  # tokens, before anything was measured

    def __init__(self, costs: Costs, acceptance: Acceptance, most: int = LARGEST) -> None:
        self._costs, self._acceptance, self._most = costs, acceptance, most
        self._gamma, self._draft, self._check = self._FIRST, 0.0, 0.0

    def begin_round(self, rates: Sequence[float]) -> None:
        """See Lookahead."""
        if not self._costs.known(both=False):
            return
        speed, self._gamma = in_turns_speed(self._costs, rates, self._most)
        slope = self._costs.target(False)[1]
        # The seconds that drafting and checking a token takes, in tokens at the best speed there is.
        self._draft, self._check = speed * (self._costs.draft(False) + slope), speed * slope

    def ask(self, waiting: int) -> int:
        """See Lookahead."""
        return self._gamma - waiting

    def wants(self, probs: Sequence[float], coming: float | None, pre_verify: bool) -> bool:
        """See Lookahead."""
        if len(probs) >= self._gamma:
            return False
        if coming is not None:
            return self._acceptance.chance([*probs, coming]) > self._check
        return not probs or self._acceptance.chance(probs) * self._acceptance.rate > self._draft

    def end_round(self, tokens: int, seconds: float) -> None:
        """Nothing to learn beyond costs and acceptance."""


class InGroups(InTurns):
    """In turns, in two groups: what a step takes counts twice, and a draft step only where it is waited for."""

    def begin_round(self, rates: Sequence[float]) -> None:
        """See Lookahead."""
        measured = self._costs.in_groups
        if not measured.known(both=True):
            return super().begin_round(rates)
        speed, self._gamma = groups_speed(self._costs, rates, self._most)
        slope = measured.target(True)[1]
        self._draft, self._check = 2 * speed * (measured.draft(True) + slope), 2 * speed * slope


class Threshold:
    """In parallel, the draft runs on, and a token is checked, or waited for, if its chance is worth the time.

    A drafted token that is there is checked if the chance that it is accepted is worth the wider forward. One that is
    not there is waited for if that is worth the time. Both are compared with the speed of the answer so far.
    """

    # Found on simulated answers over a range of costs and acceptance; their neighbours do nearly as well.
    _WORTH_WAITING, _WORTH_CHECKING = 1.3, 0.7
    _FORGETS = 0.9  # a round, of the speed seen before

    def __init__(self, costs: Costs, acceptance: Acceptance) -> None:
        self._costs, self._acceptance = costs, acceptance
        self._tokens = self._seconds = 0.0
        self._wait, self._check = 1.0, 0.0  # chances from which a token is worth it

    def begin_round(self, rates: Sequence[float]) -> None:
        """See Lookahead."""
        if not self._costs.known(both=True):
            return
        fixed, slope = self._costs.target(True)
        # Before anything is known: two tokens a forward.
        speed = (self._tokens + 2) / (self._seconds + fixed + slope)
        self._wait = self._WORTH_WAITING * speed * (self._costs.draft(True) + slope)
        self._check = self._WORTH_CHECKING * speed * slope

    def ask(self, waiting: int) -> int:
        """See Lookahead."""
        # A few times as far as it will get: what is drafted beyond a rejection only warms the machine.
        return min(LARGEST, round(4 / (1 - self._acceptance.rate))) - waiting

    def wants(self, probs: Sequence[float], coming: float | None, pre_verify: bool) -> bool:
        """See Lookahead."""
        if coming is not None:
            return self._acceptance.chance([*probs, coming]) > self._check
        return self._costs.known(both=True) and self._acceptance.chance(probs) * self._acceptance.rate > self._wait

    def end_round(self, tokens: int, seconds: float) -> None:
        """See Lookahead."""
        self._tokens = self._FORGETS * self._tokens + tokens
        self._seconds = self._FORGETS * self._seconds + seconds


class AlwaysDraft:
    """The draft works in every round."""

    waking = resting = False

    def begin_round(self) -> bool:
        """Whether the draft works in this round."""
        return True

    def saw(self, accepted: int, checked: int) -> None:
        """A verdict."""

    def end_round(self, tokens: int, seconds: float) -> None:
        """A round brought so many tokens in so many seconds."""


class Rest(AlwaysDraft):
    """Lets the draft rest when rounds with it are slower than the target alone, and tries it again now and then.

    both: whether the two models work at the same time.
    """

    _JUDGED_ROUNDS, _TRIAL_ROUNDS = 6, 4  # rounds with a draft before it is judged: at first, and after a rest
    _REST_ROUNDS, _LONGEST_REST_ROUNDS = 16, 128
    _BARREN_ROUNDS, _BARREN_TRIAL_ROUNDS = 4, 2  # rounds without one accepted token before it rests
    _SUSPICIOUS = 0.8  # share of the target's own time a token from which the target alone is timed

    def __init__(self, costs: Costs, both: bool) -> None:
        self._costs, self._both = costs, both
        self._alone: deque[float] = deque(maxlen=9)  # seconds a token in rounds without the draft
        self._together: deque[tuple[int, float]] = deque(maxlen=self._JUDGED_ROUNDS)
        self._left, self._next_rest = 0, self._REST_ROUNDS
        self._barren, self._fruitful = 0, False  # since the draft began or rested
        self._working, self._woken = False, False

    @property
    def waking(self) -> bool:  # type: ignore[override]
        """Whether the draft works again after a rest, and must first read what was generated meanwhile."""
        return self._working and self._woken

    def begin_round(self) -> bool:
        """See AlwaysDraft."""
        self._working = self._left == 0
        if not self._working:
            self._left, self._woken = self._left - 1, True
        return self._working

    def saw(self, accepted: int, checked: int) -> None:
        """See AlwaysDraft."""
        self._barren += checked > 0
        self._fruitful |= accepted > 0

    def end_round(self, tokens: int, seconds: float) -> None:
        """See AlwaysDraft."""
        if not self._working:
            self._alone.append(seconds / tokens)
        elif self._woken:
            self._woken = False
        else:
            self._judge(tokens, seconds)

    def _judge(self, tokens: int, seconds: float) -> None:
        tried = self._next_rest > self._REST_ROUNDS
        if not self._fruitful and self._barren >= (self._BARREN_TRIAL_ROUNDS if tried else self._BARREN_ROUNDS):
            self._next_rest = self._LONGEST_REST_ROUNDS  # waking it costs as much as some tokens
            self._begin_rest()
            return
        self._together.append((tokens, seconds))
        if len(self._together) < (self._TRIAL_ROUNDS if tried else self._JUDGED_ROUNDS):
            return
        # One hiccup of the machine does not count against the draft.
        rounds = sorted(self._together, key=lambda one: one[1] / one[0])[:-1]
        pace = sum(seconds for _, seconds in rounds) / sum(tokens for tokens, _ in rounds)
        if not self._alone:
            if pace > self._SUSPICIOUS * sum(self._costs.target(self._both)):
                self._left = self._TRIAL_ROUNDS  # to time the target when nothing disturbs it
        elif pace > median(self._alone):
            self._begin_rest()
        else:
            self._next_rest = self._REST_ROUNDS

    def _begin_rest(self) -> None:
        self._left, self._next_rest = self._next_rest, min(2 * self._next_rest, self._LONGEST_REST_ROUNDS)
        self._together.clear()
        self._barren, self._fruitful = 0, False
