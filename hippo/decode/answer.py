"""The answer of one request so far: its tokens, what is known of them, its end, and its counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from torch import Tensor

from hippo.decode.stop import StopRule
from hippo.decode.verify import Processors, Verdict, Verifier, logprobs_of
from hippo.draft import Proposal
from hippo.stats import Stats
from hippo.trace import Logprob, TokenInfo


class Rules(NamedTuple):
    """A caller's own rules of what is said and where it ends, instead of those that parameters and the checkpoint make.

    processors: see `Verifier`. ends, eos: see `StopRule`; eos names the end, `ends` decides it too.
    """

    processors: Processors
    ends: Callable[[list[int]], bool]
    eos: Collection[int]


class Answer:
    """Tokens that were committed, with the verify rule and the stop rule that decide them. logprobs: see
    `SamplingParams`."""

    def __init__(self, verifier: Verifier, stop: StopRule, stats: Stats, logprobs: int | None = None) -> None:
        self._verifier, self._stop, self._stats, self._logprobs = verifier, stop, stats, logprobs
        self._judged: list[Logprob] = []  # of the last verdict's tokens, if asked for
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
        verdict = self._verifier.verify(logits, [proposal.id for proposal in drafted])
        if self._logprobs is not None:
            self._judged = logprobs_of(logits, verdict.tokens, self._logprobs)
        return verdict

    def commit(self, verdict: Verdict) -> list[int]:
        """Add the last verdict's tokens as far as the stop rule lets them, and count the drafted ones that mattered.

        Returns the tokens that were added.
        """
        tokens = self._stop.cut(self.tokens, verdict.tokens)
        accepted = min(len(tokens), len(verdict.accepted))
        rejected = verdict.rejected and len(tokens) > accepted
        self._stats.checked += accepted + rejected
        self._stats.accept(accepted)
        self._stats.rejections += rejected
        self._verifier.commit(tokens)
        self.tokens += tokens
        trace = self._stats.trace
        seconds = time.perf_counter() - trace.submitted
        for place, token in enumerate(tokens):
            known = self._judged[place] if self._judged else ()
            trace.tokens.append(TokenInfo(token, place < accepted, seconds, *known))
        return tokens
