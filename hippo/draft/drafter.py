"""What a decoder sees of the draft: ask for tokens, take them, tell the verdict."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from hippo.draft.messages import Begin, End, Keep, Propose, Read, Ready, Settle, Token, packed
from hippo.draft.process import DraftLost, DraftProcess
from hippo.families import VideoGrid
from hippo.report.stats import Stats

# A prefill may take much longer than a step: so many times the process's timeout. Meanwhile the target works alone.
_PATIENCE = 10


class Proposal(NamedTuple):
    """A drafted token. sure: the draft's probability of it."""

    id: int
    sure: float


class Drafter:
    """One request's draft. If its process is lost, every call becomes a no-op and the target carries on alone:
    `propose` asks nobody and `collect` returns no tokens. `stats.draft_lost` then says why."""

    def __init__(
        self,
        process: DraftProcess | None,
        stats: Stats,
        on_step: Callable[[float], None],
        limit: int = 0,
        alike: bool = False,
    ) -> None:
        """process: None for a request that uses no draft. on_step: told the seconds of each draft step. limit: ids from
        here on are never proposed. alike: the draft has the target's eyes, see `hippo.draft.eyes`."""
        self._process, self._stats, self._on_step = process, stats, on_step
        self._limit, self.alike = limit, alike and process is not None
        self._ready = False
        self._began = 0  # the process's epoch in which this request began
        self._asked = 0
        self._arrived: deque[Proposal] = deque()
        self._patience_ends = float("inf")

    def begin(self, inputs: dict[str, Any]) -> None:
        """Send the inputs; the draft encodes the video at once."""
        self._began = self._turn()
        self._send(Begin(packed(inputs), self._limit))

    def prefill(self, kept: Tensor, grids: tuple[VideoGrid, ...]) -> None:
        """Tell which of the tokens of the videos' grids to keep, (K,); the draft reads its prompt."""
        self._send(Keep(kept.tolist(), grids))
        self._be_patient()

    def read(self, prompt: dict[str, Tensor]) -> None:
        """In place of `begin` and `prefill` if they see alike; prompt: see `hippo.draft.eyes.seen`."""
        self._began = self._turn()
        self._send(Read(packed(prompt), self._limit))
        self._be_patient()

    def _be_patient(self) -> None:
        if self._process is not None:
            self._patience_ends = time.monotonic() + _PATIENCE * self._process.timeout

    @property
    def lost(self) -> bool:
        """Whether there is no draft, or no longer."""
        return self._process is None

    def ready(self) -> bool:
        """Whether the draft has read its prompt and can propose; looks without waiting."""
        while self._process is not None and not self._ready and self._has_news():
            self._receive()
        if self._process is not None and not self._ready and time.monotonic() > self._patience_ends:
            self._lose(DraftLost(f"the draft did not read its prompt in {_PATIENCE * self._process.timeout:g} s"))
        return self._ready

    def propose(self, count: int) -> None:
        """Ask for `count` tokens after everything proposed so far. Returns at once."""
        if count > 0 and self._ready:
            self._asked += count
            self._send(Propose(count))

    @property
    def waiting(self) -> int:
        """Tokens asked for and not yet collected, drafted or not."""
        return self._asked + len(self._arrived)

    def coming(self) -> Proposal | None:
        """The next proposed token if it is there; looks without waiting."""
        while not self._arrived and self._asked > 0 and self._has_news():
            self._receive()
        return self._arrived[0] if self._arrived else None

    def collect(self, count: int) -> list[Proposal]:
        """The next `count` proposed tokens, waiting for them; fewer if fewer were asked for or the draft is lost."""
        while len(self._arrived) < count and self._asked > 0 and self._process is not None:
            self._receive()
        return [self._arrived.popleft() for _ in range(min(count, len(self._arrived)))]

    def settle(self, stands: int, tokens: list[int]) -> None:
        """The verdict: the first `stands` generated tokens stand, `tokens` follow, all else proposed is dropped."""
        self._turn()
        self._asked = 0
        self._arrived.clear()
        self._send(Settle(stands, tokens))

    def end(self) -> None:
        """The request is over."""
        self._send(End())

    def _turn(self) -> int:
        """A new epoch: what the draft said before is no longer meant. The draft counts along."""
        if self._process is None:
            return 0
        self._process.epoch += 1
        return self._process.epoch

    def _send(self, message: Any) -> None:
        if self._process is not None:
            try:
                self._process.send(message)
            except DraftLost as lost:
                self._lose(lost)

    def _has_news(self) -> bool:
        try:
            return self._process is not None and self._process.pending()
        except DraftLost as lost:
            self._lose(lost)
            return False

    def _receive(self) -> None:
        assert self._process is not None
        try:
            message = self._process.receive()
        except DraftLost as lost:
            self._lose(lost)
            return
        match message:
            case Ready(epoch, seconds, warning) if epoch == self._began:
                self._ready = True
                self._stats.seconds.draft_prefill = seconds
                self._stats.warnings += [warning] if warning else []
            case Token(epoch, token, sure, seconds):
                self._stats.draft_forwards += epoch > self._began
                if epoch == self._process.epoch:
                    self._on_step(seconds)
                    self._asked -= 1
                    self._arrived.append(Proposal(token, sure))

    def _lose(self, lost: DraftLost) -> None:
        assert self._process is not None
        self._stats.draft_lost = str(lost)
        self._process.close()
        self._process = None
        self._ready = False
