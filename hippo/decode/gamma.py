"""How many tokens the draft proposes at a time."""

from __future__ import annotations

from collections import deque
from statistics import median

LARGEST = 24


class Gamma:
    """A fixed number, or `auto`: chosen anew each round from the costs measured in this very answer.

    overlapped: whether draft and target work at the same time. Then gamma is T_target / T_draft, so that neither waits
    (PEARL). In turns, it is the gamma with the most expected tokens a second at the acceptance seen so far (the usual
    formula of speculative decoding; the prior acceptance of 0.8, worth 10 tokens, is our choice).
    """

    def __init__(self, value: int | str, overlapped: bool) -> None:
        self._fixed = value if isinstance(value, int) else None
        self._overlapped = overlapped
        self._target: deque[float] = deque(maxlen=9)
        self._draft: deque[float] = deque(maxlen=25)
        self._accepted, self._checked = 8.0, 10.0
        self._used: list[int] = []

    def next(self) -> int:
        """Gamma for the next round."""
        gamma = self._fixed or self._auto()
        self._used.append(gamma)
        return gamma

    @property
    def mean(self) -> float:
        """Mean gamma over the rounds so far; 0 before the first."""
        return sum(self._used) / len(self._used) if self._used else 0.0

    def saw_target(self, seconds: float) -> None:
        """One target forward took this long."""
        self._target.append(seconds)

    def saw_draft(self, seconds: float) -> None:
        """One draft step took this long."""
        self._draft.append(seconds)

    def saw_verdict(self, accepted: int, checked: int) -> None:
        """So many drafted tokens stood of those checked."""
        self._accepted += accepted
        self._checked += checked

    def _auto(self) -> int:
        if not self._target or not self._draft:
            return 4
        target, draft = median(self._target), max(median(self._draft), 1e-6)
        if self._overlapped:
            return max(1, min(LARGEST, round(target / draft)))
        rate = min(0.999, self._accepted / self._checked)

        def tokens_a_second(gamma: int) -> float:
            return (1 - rate ** (gamma + 1)) / (1 - rate) / (gamma * draft + target)

        return max(range(1, LARGEST + 1), key=tokens_a_second)
