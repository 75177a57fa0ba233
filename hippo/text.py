"""Token ids to text, piece by piece, never a broken character."""

from __future__ import annotations

from typing import Any


class TextStream:
    """Decodes a growing answer. tokenizer: of transformers. Holds back bytes that are not yet a whole character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._told = 0
        self._start = 0  # token from which decoding begins, moved up to keep it cheap
        self.text = ""
        self.token_ids: list[int] = []

    def push(self, tokens: list[int]) -> str:
        """Add tokens; returns the text that is now certain."""
        self.token_ids += tokens
        return self._tell(whole=False)

    def finish(self) -> str:
        """The rest of the text."""
        return self._tell(whole=True)

    def _tell(self, whole: bool) -> str:
        text = self._tokenizer.decode(self.token_ids[self._start :], skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and not whole:
            return ""
        piece = text[self._told :]
        self._told = len(text)
        self.text += piece
        if piece and piece[-1] in ".!?\n":
            self._start, self._told = len(self.token_ids), 0
        return piece
