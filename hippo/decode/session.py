"""One answer in the making: what all decoders share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hippo.decode.gamma import LARGEST, Gamma
from hippo.decode.sampling import Chooser
from hippo.decode.stop import StopRule
from hippo.draft import Drafter, Proposal
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

    beside: told before each round whether the draft is going to work in it. now: the time in seconds.
    """

    def __init__(
        self,
        target: CachedModel,
        chooser: Chooser,
        stop: StopRule,
        gamma: Gamma,
        stats: Stats,
        beside: Callable[[bool], None] = lambda _: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._target, self._gamma = target, gamma
        self._chooser, self._stop, self._stats = chooser, stop, stats
        self.tokens: list[int] = []
        self._beside, self._now = beside, now
        self._began, self._before, self._planned, self._drafting = 0.0, 0, False, False

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self._stop.reason is not None

    @property
    def finish(self) -> str:
        """Why the answer ended: eos, length or stop; empty while it has not."""
        return self._stop.reason or ""

    def plan(self, drafter: Drafter) -> None:
        """Begin a round: ask the draft for tokens, never more than the answer may still hold; none while it is not
        there yet, rests or is lost."""
        self._began, self._before = self._now(), len(self.tokens)
        self._planned = drafter.ready()
        self._drafting = self._planned and self._gamma.works()
        self._beside(not drafter.lost and (self._drafting or not self._planned))
        if self._drafting:
            waiting = drafter.waiting
            drafter.propose(min(self._gamma.asks(waiting), self._left - waiting))

    def window(self, drafter: Drafter) -> list[Proposal]:
        """The drafted tokens that the target shall check next: those there, and those worth waiting for."""
        window: list[Proposal] = []
        sure: list[float] = []
        while self._drafting and len(window) < min(self._left, LARGEST):
            coming = drafter.coming()
            if not self._gamma.wants(sure, None if coming is None else coming.sure):
                break
            more = drafter.collect(1)
            if not more:
                break
            window += more
            sure.append(more[0].sure)
        return window

    def following(self, drafter: Drafter) -> list[Proposal]:
        """The first drafted token after the window, which the same forward checks. It is waited for, unless the draft
        is still reading what was said while it rested."""
        return [] if self._gamma.waking and drafter.coming() is None else drafter.collect(1)

    @property
    def _left(self) -> int:
        """Tokens that the answer may still hold."""
        return self._stop.length - len(self.tokens)

    def end_round(self) -> None:
        """End a round, everything it waited for included."""
        if self._planned:
            self._gamma.saw_round(len(self.tokens) - self._before, self._now() - self._began)
            self._stats.draft_rounds += self._drafting

    def start(self, logits: Tensor) -> list[int]:
        """Commit the first token, from the prefill's logits (vocabulary,). Returns it."""
        return self.commit(self.verify(logits[None], []))

    def forward(self, drafted: list[Proposal]) -> Tensor:
        """One target forward over the last token and `drafted` after it: (1 + len(drafted), vocabulary) logits."""
        rows = self._target.extend([self.tokens[-1], *(proposal.id for proposal in drafted)])
        self._gamma.saw_target(1 + len(drafted), self._target.seconds)
        return rows

    def verify(self, rows: Tensor, drafted: list[Proposal]) -> Verdict:
        """Judge `drafted` by the target's logits, (n, vocabulary); see `Chooser.choose`."""
        ids = [proposal.id for proposal in drafted]
        accepted, own = self._chooser.choose(rows, ids)
        self._gamma.saw_verdict(accepted, [proposal.sure for proposal in drafted[: accepted + 1]])
        return Verdict(ids[:accepted], own, accepted < len(drafted))

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
        self._chooser.commit(tokens)
        self.tokens += tokens
        return tokens
