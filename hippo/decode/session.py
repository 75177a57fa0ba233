"""One answer in the making: what all decoders share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hippo.decode.gamma import Gamma, Plan
from hippo.decode.sampling import Chooser
from hippo.decode.stop import StopRule
from hippo.draft import Drafter
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
        self._began, self._before, self._planned = 0.0, 0, False

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._stop.reason is not None

    @property
    def finish(self) -> str:
        """Why the answer ended: eos, length or stop; empty while it has not."""
        return self._stop.reason or ""

    def plan(self, drafter: Drafter, pending: int = 0) -> Plan:
        """Begin a round: how many tokens to propose in it, `pending` ones waiting to be checked. Never more than the
        answer may still hold, and none while the draft is not there yet or no longer."""
        self._began, self._before = time.perf_counter(), len(self.tokens)
        self._planned = drafter.ready()
        gamma, lead = self._gamma.next() if self._planned else Plan(0, 0)
        self._beside(not drafter.lost and (gamma > 0 or not self._planned))
        left = max(0, self._stop.length - len(self.tokens) - pending)
        gamma = min(gamma, left)
        return Plan(gamma, 0 if pending else min(lead, left - gamma))

    def end_round(self) -> None:
        """End a round, everything it waited for included."""
        if self._planned:
            self._gamma.saw_round(len(self.tokens) - self._before, time.perf_counter() - self._began)

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
        self._chooser.commit(tokens)
        self.tokens += tokens
        return tokens
