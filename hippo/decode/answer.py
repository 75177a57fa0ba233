"""The answer of one request so far: its tokens, its end, and its counts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hippo.decode.stop import StopRule
from hippo.decode.verify import Verdict, Verifier
from hippo.draft import Proposal
from hippo.stats import Stats


class Answer:
    """Tokens that were committed, with the verify rule and the stop rule that decide them."""

    def __init__(self, verifier: Verifier, stop: StopRule, stats: Stats) -> None:
        self._verifier, self._stop, self._stats = verifier, stop, stats
        self.tokens: list[int] = []

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._stop.reason is not None

    @property
    def finish(self) -> str:
        """Why the answer ended: eos, length or stop; empty while it has not."""
        return self._stop.reason or ""

    @property
    def room(self) -> int:
        """Tokens that the answer may still hold."""
        return self._stop.length - len(self.tokens)

    def verify(self, logits: Tensor, drafted: Sequence[Proposal]) -> Verdict:
        """See `Verifier.verify`."""
        return self._verifier.verify(logits, [proposal.id for proposal in drafted])

    def commit(self, verdict: Verdict) -> list[int]:
        """Add a verdict's tokens as far as the stop rule lets them, and count the drafted ones that mattered.

        Returns the tokens that were added.
        """
        bonus = [] if verdict.bonus_token is None else [verdict.bonus_token]
        tokens = self._stop.cut(self.tokens, verdict.accepted + bonus)
        accepted = min(len(tokens), len(verdict.accepted))
        rejected = verdict.rejected and len(tokens) > accepted
        self._stats.checked += accepted + rejected
        self._stats.accepted += accepted
        self._stats.rejections += rejected
        self._verifier.commit(tokens)
        self.tokens += tokens
        return tokens
