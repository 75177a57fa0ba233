"""One answer in the making: what all decoders share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hippo.decode.gamma import Gamma, Plan
from hippo.decode.sampling import Chooser
from hippo.decode.stop import StopRule
from hippo.forward import CachedModel
from hippo.report.stats import Stats


class Verdict(NamedTuple):
    """The drafted tokens that stand; the target's own token after them, or None if there was no row left to choose one
    from; whether a drafted token was rejected."""

    accepted: list[int]
    own: int | None
    rejected: bool


class Session:
    """The target with its prompt read, the verify rule, the stop rule, and the tokens so far.

    beside: told before each round whether the draft is going to work in it.
    """

    def __init__(
        self,
        target: CachedModel,
        chooser: Chooser,
        stop: StopRule,
        gamma: Gamma,
        stats: Stats,
        beside: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._target, self._gamma = target, gamma
        self._chooser, self._stop, self._stats = chooser, stop, stats
        self.tokens: list[int] = []
        self._beside = beside
        self._began = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._stop.reason is not None

    @property
    def finish(self) -> str:
        """Why the answer ended: eos, length or stop; empty while it has not."""
        return self._stop.reason or ""

    def plan(self) -> Plan:
        """How many tokens to propose now: never more than the answer may still hold."""
        self._began = time.perf_counter()
        left = self._stop.length - len(self.tokens)
        gamma, lead = self._gamma.next()
        self._beside(gamma > 0)
        return Plan(min(gamma, left), min(lead, left - min(gamma, left)))

    def start(self, logits: Tensor) -> list[int]:
        """Commit the first token, from the prefill's logits (vocabulary,). Returns it."""
        return self.commit(self.verify(logits[None], []))

    def forward(self, drafted: list[int]) -> Tensor:
        """One target forward over the last token and `drafted` after it: (1 + len(drafted), vocabulary) logits."""
        rows = self._target.extend([self.tokens[-1], *drafted])
        self._gamma.saw_target(1 + len(drafted), self._target.seconds)
        return rows

    def verify(self, rows: Tensor, drafted: list[int]) -> Verdict:
        """Judge `drafted` by the target's logits, (n, vocabulary); see `Chooser.choose`."""
        accepted, own = self._chooser.choose(rows, drafted)
        return Verdict(drafted[:accepted], own, accepted < len(drafted))

    def rollback(self, count: int) -> None:
        """Make the target forget the last `count` tokens of its KV cache."""
        self._target.rollback(count)

    def commit(self, verdict: Verdict) -> list[int]:
        """Add a verdict's tokens to the answer as far as the stop rule lets them, and count what was so far needed.
        Returns the tokens that were added."""
        own = [] if verdict.own is None else [verdict.own]
        tokens = self._stop.cut(self.tokens, verdict.accepted + own)
        accepted = min(len(tokens), len(verdict.accepted))
        rejected = verdict.rejected and len(tokens) > accepted
        self._stats.checked += accepted + rejected
        self._stats.accepted += accepted
        self._stats.rejections += rejected
        self._gamma.saw_verdict(accepted, accepted + rejected)
        self._gamma.saw_round(len(tokens), time.perf_counter() - self._began)
        self._chooser.commit(tokens)
        self.tokens += tokens
        return tokens
