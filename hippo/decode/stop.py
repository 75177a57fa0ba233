"""The stop rule: the answer ends at the exact token, wherever in a window it falls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence


class StopRule:
    """End-of-sequence tokens, a length, and strings.

    decode: token ids -> text, special tokens kept; needed only with stop strings. ends: the answer so far -> whether it
    ends here; called once for each token, in order. As in generate(), the token that ends the answer is part of it.
    """

    def __init__(
        self,
        eos: Collection[int],
        max_new_tokens: int,
        strings: Sequence[str] = (),
        decode: Callable[[list[int]], str] | None = None,
        ends: Callable[[list[int]], bool] | None = None,
    ) -> None:
        self._eos, self._length, self._strings, self._decode = frozenset(eos), max_new_tokens, tuple(strings), decode
        self._ends = ends
        # Tokens that surely hold any new match: a byte-level token is at least one byte.
        self._window = max((len(string.encode()) for string in strings), default=0) + 8
        self.reason: str | None = None

    @property
    def length(self) -> int:
        """The longest answer, in tokens."""
        return self._length

    def cut(self, before: list[int], new: list[int]) -> list[int]:
        """The part of `new` that is of the answer after `before`; sets `reason` at its end: eos, length, stop."""
        for count in range(1, len(new) + 1):
            ends = self._ends is not None and self._ends(before + new[:count])
            if new[count - 1] in self._eos:
                self.reason = "eos"
            elif self._strings and self._holds_string(before, new[:count]):
                self.reason = "stop"
            elif len(before) + count >= self._length:
                self.reason = "length"
            elif ends:
                self.reason = "stop"
            if self.reason:
                return new[:count]
        return new

    def _holds_string(self, before: list[int], new: list[int]) -> bool:
        assert self._decode is not None
        text = self._decode((before + new)[-self._window :])
        return any(string in text for string in self._strings)
