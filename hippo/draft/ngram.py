"""Prompt lookup: a drafter without a model, for answers that repeat what the prompt or the answer has said."""

from __future__ import annotations

_SIZES = (4, 3, 2)  # tokens that must have occurred together; longer ones are tried first


class NGram:
    """Finds the last tokens of the text where they occurred before, and proposes what followed there. See
    `hippo.draft.proposer.Proposer`."""

    def __init__(self) -> None:
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # tokens -> the place after their latest occurrence but the end's

    def commit(self, tokens: list[int]) -> None:
        """Add tokens to the text."""
        for token in tokens:
            end = len(self._text)
            for size in _SIZES:
                self._after[tuple(self._text[max(0, end - size) :])] = end
            self._text.append(token)

    def propose(self, count: int) -> list[int]:
        """At most `count` tokens that may follow; none where the last ones are new. A text that has begun to repeat
        itself is taken to go on so."""
        for size in _SIZES:
            if begin := self._after.get(tuple(self._text[-size:])):
                period = len(self._text) - begin
                return [self._text[begin + place % period] for place in range(count)]
        return []
