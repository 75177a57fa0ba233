"""What decoding costs on this machine, how good the draft is in this answer, and the speeds that follow from both."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from statistics import median
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)
LARGEST = 24  # drafted tokens that may wait to be checked
_WORTH = 4.0  # checked tokens that what earlier answers showed is worth
SUREST = 0.995  # no drafted token counts as certain
UNKNOWN = 0.8  # acceptance of a pair before it was measured
_ENOUGH_FORWARDS, _ENOUGH_STEPS = 3, 3  # measurements that costs need
_SLOPE = 0.04  # share of a forward that one more token costs, until two widths were measured
_PROMPTS = 16  # of the draft, the latest, that are remembered
_START = 100  # tokens that starting to read a prompt is worth, until prompts of two lengths were measured
_BUSY = 2.0  # times what a wider forward takes, from which on a measurement is not believed
_SLOWDOWN = 1.3  # of both models while they work at the same time, until it was measured
_WAYS = {False: "alone", True: "beside"}  # how both are named on disk


class Costs:
    """Seconds of a target forward by its width, and of a draft step: medians of the latest measurements.

    Each is kept apart for a model that works alone and for one beside which the other works, and for the number of
    requests that one forward serves. batch: that number now, rounded to a power of two. prompts: tokens of the
    draft's latest prompts and the seconds that it took for each. All requests of a pair share one object.
    """

    def __init__(self) -> None:
        self.batch, self.prompts = 1, deque[tuple[int, float]](maxlen=_PROMPTS)
        self._targets: dict[int, dict[bool, dict[float, deque[float]]]] = {}
        self._drafts: dict[int, dict[bool, deque[float]]] = {}

    def serve(self, size: int) -> None:
        """So many requests decode together from now on."""
        self.batch = self.in_groups.batch = 1 << round(math.log2(size))

    @cached_property
    def in_groups(self) -> Costs:
        """Of requests in two groups, where both models always work: a step of one group, from asking the draft for the
        other to the last commit, by the mean width; and a draft step for the other group."""
        return Costs()

    @property
    def _target(self) -> dict[bool, dict[float, deque[float]]]:
        return self._targets.setdefault(self.batch, {False: {}, True: {}})

    @property
    def _draft(self) -> dict[bool, deque[float]]:
        return self._drafts.setdefault(self.batch, {both: deque(maxlen=24) for both in (False, True)})

    def known(self, both: bool) -> bool:
        """Whether both models were measured in this way."""
        return bool(self._target[both] and self._draft[both])

    @property
    def saw_drafts(self) -> bool:
        """Whether a draft was measured with any number of requests."""
        own = any(any(ways.values()) for ways in self._drafts.values())
        return own or ("in_groups" in vars(self) and self.in_groups.saw_drafts)

    def enough(self, both: bool) -> bool:
        """Whether they were measured often enough to choose by: the first forwards of a process are slow."""
        forwards = sum(map(len, self._target[both].values()))
        return forwards >= _ENOUGH_FORWARDS and len(self._draft[both]) >= _ENOUGH_STEPS

    def forwards(self, width: int, both: bool) -> int:
        """How many forwards over `width` tokens are remembered."""
        return len(self._target[both].get(width, ()))

    def saw_target(self, width: float, seconds: float, both: bool) -> None:
        """Add a target forward over `width` tokens. both: the draft worked at the same time."""
        self._target[both].setdefault(width, deque(maxlen=5)).append(seconds)

    def saw_draft(self, seconds: float, both: bool) -> None:
        """Add a draft step. both: the target worked at the same time."""
        self._draft[both].append(seconds)

    def forget_draft(self) -> None:
        """Let the next measurements of a draft that works alone count for more than those before."""
        while len(self._draft[False]) > 1:
            self._draft[False].popleft()

    def with_draft(self, factor: float) -> Costs:
        """The same with draft steps that take `factor` times as long."""
        other = Costs()
        other.batch, other._targets = self.batch, self._targets
        other._drafts = {
            batch: {both: deque(one * factor for one in seconds) for both, seconds in ways.items()}
            for batch, ways in self._drafts.items()
        }
        return other

    def draft(self, both: bool) -> float:
        """Seconds of a draft step; guessed from the other way of working if only that was measured."""
        if self._draft[both]:
            return max(median(self._draft[both]), 1e-9)
        factor = _SLOWDOWN if both else 1 / _SLOWDOWN
        return max(median(self._draft[not both]) * factor, 1e-9) if self._draft[not both] else 0.0

    def target(self, both: bool) -> tuple[float, float]:
        """(a, b): a forward over n tokens takes a + b n seconds, by least squares through the medians of each width, or
        of a wider one that took much less."""
        if not self._target[both]:
            if not self._target[not both]:
                return 0.0, 0.0
            factor = _SLOWDOWN if both else 1 / _SLOWDOWN
            fixed, slope = self.target(not both)
            return fixed * factor, slope * factor
        seen, least = [], math.inf
        for width, times in sorted(self._target[both].items(), reverse=True):
            seconds = median(times)
            if seconds > _BUSY * least:  # by a width that was last used on a busy machine
                seconds = least
            seen.append((width, seconds))
            least = min(least, seconds)
        if len(seen) > 1:
            return _line(seen)
        width, seconds = seen[0]
        return seconds * (1 - _SLOPE * min(width, 20)), _SLOPE * seconds

    def plain(self) -> float:
        """Seconds of a forward over one token; where that was not measured, by the other widths."""
        measured = self._target[False].get(1)
        return median(measured) if measured else sum(self.target(False))

    def prompt(self, tokens: int) -> float:
        """Seconds in which the draft reads a prompt of so many tokens; 0 if it has read none yet."""
        seen = {length: [seconds for n, seconds in self.prompts if n == length] for length, _ in self.prompts}
        medians = [(length, median(seconds)) for length, seconds in seen.items()]
        if len(medians) > 1:
            fixed, slope = _line(medians)
            return fixed + slope * tokens
        return sum(seconds * (_START + tokens) / (_START + length) for length, seconds in medians)

    def as_dict(self) -> dict[str, Any]:
        """All measurements, by the number of requests, as JSON can hold them."""
        kept: dict[str, Any] = {"batches": {}, "prompts": [list(one) for one in self.prompts]}
        for batch in sorted(self._targets.keys() | self._drafts.keys()):
            target, draft = self._targets.get(batch, {}), self._drafts.get(batch, {})
            ways = {
                way: {
                    "target": {f"{width:g}": list(seconds) for width, seconds in target.get(both, {}).items()},
                    "draft": list(draft.get(both, ())),
                }
                for both, way in _WAYS.items()
            }
            if any(way["target"] or way["draft"] for way in ways.values()):
                kept["batches"][str(batch)] = ways
        if "in_groups" in vars(self) and (in_groups := self.in_groups.as_dict())["batches"]:
            kept["in_groups"] = in_groups
        return kept

    @classmethod
    def of_dict(cls, kept: Any) -> Costs:
        """What `as_dict` gave, of one request now. Raises ValueError if that is something else."""
        costs = cls()
        try:
            for batch, ways in kept["batches"].items():
                costs.batch = _in_range(int(batch), 1, 1 << 20)
                for both, way in _WAYS.items():
                    for width, seconds in ways[way]["target"].items():
                        for one in seconds:
                            costs.saw_target(_in_range(float(width), 1, 1 << 20), _in_range(one, 0, 1e4), both)
                    for one in ways[way]["draft"]:
                        costs.saw_draft(_in_range(one, 0, 1e4), both)
            costs.batch = 1
            for tokens, seconds in kept["prompts"]:
                costs.prompts.append((_in_range(int(tokens), 1, 1 << 30), _in_range(seconds, 0, 1e4)))
            if "in_groups" in kept:
                costs.in_groups = cls.of_dict(kept["in_groups"])
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise ValueError("not the costs of a pair") from None
        return costs


def _line(seen: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(a, b): n take a + b n seconds, neither of them negative, by least squares. seen: two different n at least."""
    mean_number = sum(number for number, _ in seen) / len(seen)
    mean = sum(seconds for _, seconds in seen) / len(seen)
    spread = sum((number - mean_number) ** 2 for number, _ in seen)
    slope = sum((number - mean_number) * (seconds - mean) for number, seconds in seen) / spread
    slope = min(max(slope, 0.0), mean / mean_number)
    return mean - slope * mean_number, slope


def _in_range(value: Number, low: float, high: float) -> Number:
    if not low <= value <= high:  # nor is a NaN
        raise ValueError(value)
    return value


class Acceptance:
    """How often drafted tokens are accepted, and how that compares with the draft's own probabilities.

    prior: an acceptance that is worth _WORTH tokens.
    """

    def __init__(self, prior: float = UNKNOWN) -> None:
        self._prior = prior
        self._accepted, self._checked, self._promised = _WORTH * prior, _WORTH, _WORTH * prior

    def saw(self, accepted: float, probs: Sequence[float]) -> None:
        """So many of the checked tokens were accepted; probs: the draft's probability of each."""
        self._accepted += accepted
        self._checked += len(probs)
        self._promised += sum(probs)

    @property
    def is_guess(self) -> bool:
        """Whether nothing was checked yet."""
        return self._checked == _WORTH

    def passed_on(self, known: float) -> float:
        """What is known of the pair after this answer, if it was `known` before. An answer in which little was checked
        says little."""
        if self.is_guess:
            return known
        own, checked = self._accepted - _WORTH * self._prior, self._checked - _WORTH
        return min(SUREST, (_WORTH * known + own) / (_WORTH + checked))

    @property
    def rate(self) -> float:
        """Accepted over checked."""
        return min(SUREST, self._accepted / self._checked)

    def chance(self, probs: Sequence[float]) -> float:
        """That tokens with these probabilities are all accepted, corrected by how well probabilities have held."""
        trust, chance = min(1.0, self._accepted / max(self._promised, 1e-9)), 1.0
        for prob in probs:
            chance *= min(SUREST, trust * prob)
        return chance


def plain_speed(costs: Costs) -> float:
    """Tokens a second of the target alone."""
    return 1 / costs.plain()


def in_turns_speed(costs: Costs, rates: Sequence[float], most: int = LARGEST, least: int = 1) -> tuple[float, int]:
    """Tokens a second of a request in turns, and the gamma, from `least` to `most`, that gives it. rates: the
    acceptance of each request; the speed is their mean."""
    fixed, slope = costs.target(False)
    draft = costs.draft(False)
    return _best(rates, lambda gamma: gamma * draft + fixed + slope * (gamma + 1), most, least)


def groups_speed(costs: Costs, rates: Sequence[float], most: int = LARGEST, least: int = 1) -> tuple[float, int]:
    """As `in_turns_speed`, for requests in two groups: a round is a step of each, in which the draft works for the
    other group. Until such steps were measured: the most that it could be, with drafts that cost no time and forwards
    over half of the requests that take half as long.
    """
    fixed, slope = costs.in_groups.target(True)
    if not fixed + slope:
        fixed, slope = (half / 2 for half in costs.target(False))
    draft = costs.in_groups.draft(True)
    return _best(rates, lambda gamma: 2 * max(fixed + slope * (gamma + 1), gamma * draft), most, least)


def _best(rates: Sequence[float], seconds: Callable[[int], float], most: int, least: int) -> tuple[float, int]:
    """The largest number of tokens a second, and its gamma. seconds: of a round with so many drafted tokens.

    g drafted tokens bring (1 - rate^(g + 1)) / (1 - rate) tokens: those that are accepted and the target's own.
    """
    return max(
        (sum((1 - rate ** (gamma + 1)) / (1 - rate) for rate in rates) / len(rates) / seconds(gamma), gamma)
        for gamma in range(least, most + 1)
    )


def parallel_speed(costs: Costs, rates: Sequence[float], most: int = LARGEST) -> tuple[float, int]:
    """Tokens a second of a request if both models work at the same time, and how many are checked at once for that, at
    the acceptance of the best one. rates: of each request; the speed is their mean.

    From one rejection to the next there are 1 / (1 - rate) tokens. The first forward checks one drafted token. Each
    further one checks m, and takes as long as drafting m if that is longer; rate / (1 - rate^m) of them are needed.
    """
    fixed, slope = costs.target(True)
    draft = costs.draft(True)

    def speed(rate: float) -> tuple[float, int]:
        def seconds(m: int) -> float:
            return fixed + slope + rate / (1 - rate**m) * max(fixed + slope * m, m * draft)

        shortest, chunk = min((seconds(m), m) for m in range(1, most + 1))
        return 1 / (1 - rate) / shortest, chunk

    speeds = [speed(rate) for rate in rates]
    return sum(each for each, _ in speeds) / len(rates), max(speeds)[1]
