"""How many tokens to draft before the target checks them, and whether it is worth asking the draft at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

LARGEST = 24  # drafted tokens that may wait to be checked
# Found by hand on simulated answers over a range of costs and acceptance; their neighbours do nearly as well.
_WORTH_WAITING, _WORTH_CHECKING = 1.3, 0.7
_FORGETS = 0.9  # a round, of the speed seen before
_SUREST = 0.995  # no token is taken for certain
_PATIENCE, _TRIAL, _REST, _LONGEST_REST = 6, 4, 16, 128  # rounds
_BARREN, _BARREN_AGAIN = 4, 2  # rounds without one accepted token; the second once the draft has rested


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

    overlapped: whether draft and target work at the same time.

    A fixed number is PEARL's: with nothing pending the target starts at once, else it waits for all but one of so many
    tokens. `auto`, overlapped, lets the draft run on (our choice). The target takes a token that is there if the chance
    that it stands is worth the wider forward, and waits for one that is not if that is worth the time; the chance is
    the product of the draft's own probabilities, corrected by how often they have held. In turns, `auto` is the
    number with the most expected tokens a second if each drafted token is accepted with the rate seen so far; the
    prior of 0.8 is worth 4 tokens. When rounds with a draft turn out slower than the target alone, or nothing
    at all is accepted, the draft rests, and is tried again now and then.
    """

    def __init__(self, value: int | str, overlapped: bool) -> None:
        self._value = value if isinstance(value, int) else None
        self._overlapped = overlapped
        self._costs = Costs()
        self._accepted, self._checked, self._promised = 3.2, 4.0, 3.2
        self._fresh = True  # nothing drafted stands beyond the answer
        self._alone: deque[float] = deque(maxlen=9)  # seconds a token, in rounds without a draft
        self._together: deque[tuple[int, float]] = deque(maxlen=_PATIENCE)
        self._resting, self._rest = 0, _REST
        self._barren, self._fruitful = 0, False  # since the draft began or rested
        self._working = self._waking = False
        self._tokens = self._seconds = 0.0
        self._wait, self._check = 1.0, 0.0  # chances from which a token is worth it
        self._in_turns = 4

    def works(self) -> bool:
        """Begin a round: whether the draft works in it."""
        if self._resting:
            self._resting -= 1
            self._working, self._waking = False, True
            return False
        self._working = True
        if self._value is None and self._costs.known:
            self._set_bars() if self._overlapped else self._set_gamma()
        return True

    @property
    def waking(self) -> bool:
        """Whether the draft works again after a rest, and must first read what was said meanwhile."""
        return self._working and self._waking

    def asks(self, waiting: int) -> int:
        """How many more tokens to ask for while so many are waiting to be drafted or checked."""
        if self._value is not None:
            return self._value
        if not self._overlapped:
            return self._in_turns
        # A few times as far as it will get: what is drafted beyond a rejection only warms the machine.
        reach = round(4 / (1 - min(_SUREST, self._accepted / self._checked)))
        return min(LARGEST, reach) - waiting

    def wants(self, window: Sequence[float], coming: float | None) -> bool:
        """Whether the target shall check one more than the drafted tokens in `window`, given by their probabilities;
        coming: that of the next one, None if it has to be waited for."""
        if not self._overlapped:
            return len(window) < (self._value or self._in_turns)
        if self._value is not None:
            return len(window) < (0 if self._fresh else self._value - 1)
        trust = min(1.0, self._accepted / self._promised)
        chance = 1.0
        for sure in window:
            chance *= min(_SUREST, trust * sure)
        if coming is not None:
            return chance * min(_SUREST, trust * coming) > self._check
        return self._costs.known and chance * min(_SUREST, self._accepted / self._checked) > self._wait

    def saw_target(self, width: int, seconds: float) -> None:
        """One target forward over `width` tokens took this long."""
        if not self._waking:  # while the draft rests it has more cores
            self._costs.saw_target(width, seconds)

    def saw_draft(self, seconds: float) -> None:
        """One draft step took this long."""
        self._costs.saw_draft(seconds)

    def saw_verdict(self, accepted: int, checked: Sequence[float]) -> None:
        """The first `accepted` of the drafted tokens checked stood; they are given by their probabilities."""
        self._accepted += accepted
        self._checked += len(checked)
        self._promised += sum(checked)
        self._fresh = accepted < len(checked) or not checked
        self._barren += bool(checked)
        self._fruitful |= accepted > 0

    def saw_round(self, tokens: int, seconds: float) -> None:
        """The round planned last brought so many tokens in so many seconds."""
        if self._value is not None or not self._costs.known:
            return
        if not self._working:
            self._alone.append(seconds / tokens)
            return
        if self._waking:  # the draft had to read first what was said while it rested
            self._waking = False
            return
        self._tokens = _FORGETS * self._tokens + tokens
        self._seconds = _FORGETS * self._seconds + seconds
        if not self._fruitful and self._barren >= (_BARREN if self._rest == _REST else _BARREN_AGAIN):
            self._rest = _LONGEST_REST  # to be woken takes as long as some tokens
            self._send_to_rest()
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
            self._send_to_rest()
        else:
            self._rest = _REST

    def _send_to_rest(self) -> None:
        self._resting, self._rest = self._rest, min(2 * self._rest, _LONGEST_REST)
        self._together.clear()
        self._barren, self._fruitful = 0, False

    def _set_bars(self) -> None:
        """What a token must be worth: the seconds that waiting for it or checking it takes, in tokens at this speed."""
        fixed, slope = self._costs.target()
        # Before anything is known: two tokens a forward.
        speed = (self._tokens + 2) / (self._seconds + fixed + slope)
        self._wait = _WORTH_WAITING * speed * (self._costs.draft + slope)
        self._check = _WORTH_CHECKING * speed * slope

    def _set_gamma(self) -> None:
        rate = min(_SUREST, self._accepted / self._checked)
        fixed, slope = self._costs.target()

        def speed(gamma: int) -> float:
            tokens = sum(rate**n for n in range(gamma + 1))  # the target's own follows those that stand
            return tokens / (gamma * self._costs.draft + fixed + slope * (gamma + 1))

        self._in_turns = max(range(1, LARGEST + 1), key=speed)
