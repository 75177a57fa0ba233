"""Token ids to text, piece by piece, never a broken character."""

from __future__ import annotations

from typing import Any


class TextStream:
    """Decodes a growing answer. tokenizer: of transformers. Holds back bytes that are not yet a whole character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._context, self._sent = 0, 0  # tokens from _context on are decoded; those before _sent have been returned
        self.token_ids: list[int] = []

    def push(self, tokens: list[int]) -> str:
        """Add tokens; returns the text that is now certain."""
        self.token_ids += tokens
        return self._next(whole=False)

    def finish(self) -> str:
        """The rest of the text."""
        return self._next(whole=True)

    @property
    def text(self) -> str:
        """All of it."""
        return self._decode(self.token_ids)

    def _next(self, whole: bool) -> str:
        # Decoded with the tokens returned last: some tokenizers write a token differently at the start of a text.
        before = self._decode(self.token_ids[self._context : self._sent])
        after = self._decode(self.token_ids[self._context :])
        if after.endswith("\N{REPLACEMENT CHARACTER}") and not whole:
            return ""
        self._context, self._sent = self._sent, len(self.token_ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
