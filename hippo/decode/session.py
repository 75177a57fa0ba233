"""One answer in the making: what all decoders share."""

from __future__ import annotations

from torch import Tensor

from hippo.cached_model import CachedModel
from hippo.decode.gamma import Gamma
from hippo.decode.sampling import Chooser
from hippo.decode.stop import StopRule
from hippo.report.stats import Stats


class Session:
    """The target with its prompt read, the verify rule, the stop rule, and the tokens so far."""

    def __init__(self, target: CachedModel, chooser: Chooser, stop: StopRule, gamma: Gamma, stats: Stats) -> None:
        self.target, self.gamma = target, gamma
        self._chooser, self._stop, self._stats = chooser, stop, stats
        self.tokens: list[int] = []

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._stop.reason is not None

    @property
    def finish(self) -> str:
        """Why the answer ended: eos, length or stop; empty while it has not."""
        return self._stop.reason or ""

    def start(self, logits: Tensor) -> list[int]:
        """Commit the first token, from the prefill's logits (vocabulary,). Returns it."""
        _, token = self._chooser.choose(logits[None], [])
        assert token is not None
        return self.commit([token])

    def forward(self, drafted: list[int]) -> Tensor:
        """One target forward over the last token and `drafted` after it: (1 + len(drafted), vocabulary) logits."""
        rows = self.target.extend([self.tokens[-1], *drafted])
        self.gamma.saw_target(self.target.seconds)
        return rows

    def verify(self, rows: Tensor, drafted: list[int]) -> tuple[int, int | None]:
        """How many of `drafted` stand, and the target's own token after them; see `Chooser.choose`. Counts them."""
        accepted, token = self._chooser.choose(rows, drafted)
        rejected = accepted < len(drafted)
        self._stats.checked += accepted + rejected
        self._stats.accepted += accepted
        self._stats.rejections += rejected
        self.gamma.saw_verdict(accepted, accepted + rejected)
        return accepted, token

    def commit(self, tokens: list[int]) -> list[int]:
        """Add tokens to the answer as far as the stop rule lets them. Returns those that were added."""
        tokens = self._stop.cut(self.tokens, tokens)
        self._chooser.commit(tokens)
        self.tokens += tokens
        return tokens
