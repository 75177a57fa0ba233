"""Which way to decode the next round, of one request or of several together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from statistics import median

from hippo.decode.costs import LARGEST, Costs, groups_speed, in_turns_speed, parallel_speed, plain_speed

_TRIAL = 4  # rounds of several requests with a draft that was not worth it, of which the first is no measure
_PLAIN = 2  # rounds of several requests by the target alone, before another way is tried
_PLAIN_AGAIN = 5  # such rounds after others, until they are compared with what was measured meanwhile


class Mode(Enum):
    """How a round is decoded: by the target alone, in turns, with both models at the same time, or in turns while the
    target checks other requests."""

    PLAIN = "plain"
    IN_TURNS = "in turns"
    PARALLEL = "parallel"
    GROUPS = "two groups"

    @property
    def overlaps(self) -> bool:
        """Whether the draft works while the target does."""
        return self in (Mode.PARALLEL, Mode.GROUPS)


class Choice:
    """Takes the way that costs and acceptance promise the most tokens a second of, again in each round, and says when a
    draft that is not worth it is tried again. The costs are those of the number of requests that decode now."""

    _OPTIMISM = 1.05  # of the formula for parallel, beside that for in turns: it knows no token that waits
    # Of one group's speed, from which on two begin, and go on: promises err, and the first step of two has no overlap.
    _BEGIN, _GO_ON = 1.15, 1.05
    _CHANGE = 1.05  # of plain decoding of several requests, from which on drafting begins: all wait for the draft
    _TRIALS = 0.015  # share of the target's time that trials of a draft which is not worth it may take
    _LONGEST_REST = 128  # rounds, unless the share above asks for more
    _has_rested = False
    _STAYS, _STAYS_UNUSED = 0.98, 0.998  # a round, of what is known of how a way held its promises
    _WORTH = 8  # tokens of a request that a formula is worth beside that

    def __init__(self, costs: Costs) -> None:
        self._costs, self._mode = costs, Mode.PLAIN
        self._left, self._longer, self._batch, self._trying = 0, 1, 1, 0
        self._had_nothing = False  # whether the draft was asked in vain
        self._in_vain: deque[float] = deque(maxlen=5)  # seconds that this took
        self._promises: dict[Mode, float] = {}  # tokens a second, by the formulas
        self._held: dict[tuple[int, Mode], tuple[float, float]] = {}  # tokens, and how many were promised

    def choose(
        self,
        rates: Sequence[float],
        ways: Sequence[Mode],
        gammas: tuple[int, int] = (1, LARGEST),
        reading: float = 0.0,
        spread: float = 0.0,
    ) -> Mode:
        """The way of the next round.

        rates: the acceptance of each request. ways: those that are possible. gammas: drafted tokens that a forward
        takes of each, from and to. reading: seconds that the target would first wait for the draft to read what it
        has not read. spread: seconds a token that it waits for that, over whole answers.
        """
        if self._costs.batch != self._batch:  # what the draft rested for may hold no longer
            self._batch, self._left, self._longer, self._trying = self._costs.batch, 0, 1, 0
            self._has_rested = False
            self._promises = {}
        self._mode = self._next(rates, ways, gammas, reading, spread)
        return self._mode

    def saw_tokens(self, tokens: int, seconds: float, requests: int) -> None:
        """The last round of so many requests brought so many tokens."""
        promise = self._promises.get(self._mode, 0.0) * seconds * requests
        now = self._batch, self._mode
        for way, (brought, promised) in self._held.items():
            stays = self._STAYS if way == now else self._STAYS_UNUSED
            self._held[way] = stays * brought, stays * promised
        brought, promised = self._held.get(now, (0.0, 0.0))
        if promise and self._mode is not Mode.PLAIN:  # whose speed is measured
            self._held[now] = brought + tokens, promised + promise

    def _trust(self, mode: Mode) -> float:
        """What a way brought, of what its formula had promised."""
        brought, promised = self._held.get((self._batch, mode), (0.0, 0.0))
        worth = self._WORTH * self._batch
        return (brought + worth) / (promised + worth)

    def saw_nothing(self, seconds: float) -> None:
        """The draft was asked for so long, and had nothing to propose. It is asked again once the target has worked so
        long that the time is a small share of it."""
        if alone := sum(self._costs.target(False)):
            self._in_vain.append(seconds)
            self._left, self._had_nothing = int(median(self._in_vain) / alone / self._TRIALS), True

    def _speeds(
        self, rates: Sequence[float], ways: Sequence[Mode], gammas: tuple[int, int] = (1, LARGEST)
    ) -> dict[Mode, float]:
        """Tokens a second of a request that each way promises."""
        costs, (least, most) = self._costs, gammas
        speeds = {
            Mode.PLAIN: lambda: plain_speed(costs),
            Mode.IN_TURNS: lambda: in_turns_speed(costs, rates, most, least)[0],
            Mode.PARALLEL: lambda: parallel_speed(costs, rates, most)[0] / self._OPTIMISM,
            Mode.GROUPS: lambda: groups_speed(costs, rates, most, least)[0],
        }
        self._promises = {mode: speeds[mode]() for mode in ways}
        return {mode: speed * self._trust(mode) for mode, speed in self._promises.items()}

    def _next(
        self, rates: Sequence[float], ways: Sequence[Mode], gammas: tuple[int, int], reading: float, spread: float
    ) -> Mode:
        if self._trying and Mode.IN_TURNS in ways:
            self._trying -= 1
            return Mode.IN_TURNS
        resting = self._left > 0 and Mode.PLAIN in ways
        if resting:
            self._left -= 1
            if len(rates) == 1 or self._had_nothing:
                return Mode.PLAIN
        if len(rates) > 1 and Mode.PLAIN in ways and self._costs.forwards(1, both=False) < _PLAIN:
            return Mode.PLAIN  # what several tokens of several requests cost says little of one of each
        for mode in (Mode.PARALLEL, Mode.IN_TURNS):
            if mode in ways and not self._costs.enough(both=mode is Mode.PARALLEL):
                return mode
        speeds = self._speeds(rates, ways, gammas)
        if Mode.IN_TURNS in speeds:
            speeds[Mode.IN_TURNS] = 1 / (1 / speeds[Mode.IN_TURNS] + spread)
        if Mode.GROUPS in speeds:
            speeds[Mode.GROUPS] /= self._GO_ON if self._mode is Mode.GROUPS else self._BEGIN
        if Mode.PLAIN in speeds and self._mode is Mode.PLAIN and len(rates) > 1:
            speeds[Mode.PLAIN] *= self._CHANGE
        best = max(speeds, key=lambda mode: speeds[mode])
        if resting and best is Mode.PLAIN:
            return best
        had_nothing, self._had_nothing = self._had_nothing, False
        if best is not Mode.PLAIN:
            self._longer = 1
            return best
        if had_nothing:  # the trial goes on until there is something to check
            return Mode.IN_TURNS
        if len(rates) > 1 and self._mode is not Mode.PLAIN:  # it may be that the whole machine was slow: compare again
            self._left, self._has_rested = _PLAIN_AGAIN, False
            return Mode.PLAIN
        rounds = 1 if len(rates) == 1 else _TRIAL
        # Rounds of the target, in a trial.
        loses = rounds * (speeds[Mode.PLAIN] / speeds[Mode.IN_TURNS] - 1) + reading * speeds[Mode.PLAIN]
        tries, self._has_rested = self._has_rested and self._mode is Mode.PLAIN, True
        if tries and rounds > 1:  # what was measured is old: the machine may have been busy
            self._trying = rounds - 1
            self._costs.forget_draft()
            self._held.pop((self._batch, Mode.IN_TURNS), None)
        rest = loses / self._TRIALS
        self._left = int(max(rest, min(self._LONGEST_REST, self._longer * rest)))
        self._longer *= 2
        return Mode.IN_TURNS if tries else Mode.PLAIN
