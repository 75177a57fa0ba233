"""One request's view of the draft: ask for tokens, take them, send the verdict."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from hippo.draft.messages import ANSWER, Begin, Commit, End, Failed, NoMore, Prefill, Propose, ReadPrompt, Ready, Token
from hippo.errors import DraftLost
from hippo.families import VideoGrid
from hippo.stats import Stats

if TYPE_CHECKING:
    from hippo.draft.process import DraftWorker


class Proposal(NamedTuple):
    """A drafted token. prob: the draft's probability of it."""

    id: int
    prob: float


class Drafter:
    """One request's draft. Once it is lost every call is a no-op, `take` returns no tokens, and the target goes on
    alone; `stats.draft_lost` says why.

    worker: None for a request without a draft. on_step: called with the seconds of each draft step. limit: ids from
    here on are never proposed. shared_vision: whether the draft has the target's vision tower, so that it is given
    embeddings (`read`) and not pixels (`begin` and `prefill`). late: the draft reads its prompt only when it is first
    asked for tokens, because reading would hold the target up.
    """

    def __init__(
        self,
        worker: DraftWorker | None,
        stats: Stats,
        on_step: Callable[[float], None],
        limit: int = 0,
        shared_vision: bool = False,
        late: bool = False,
    ) -> None:
        self._worker, self._stats, self._on_step = worker, stats, on_step
        self._limit, self.shared_vision = limit, shared_vision and worker is not None
        self._penalty, self._answer = 1.0, ANSWER
        self._inbox: deque[Any] = deque()
        self._request = 0 if worker is None else worker.register(self._inbox)
        self._ready = False
        self._epoch = 0  # commits sent
        self._asked = 0  # tokens, not yet arrived
        self._arrived: deque[Proposal] = deque()
        self._held: list[Any] | None = [] if late and worker is not None else None

    @property
    def lost(self) -> bool:
        """Whether there is no draft, or no longer."""
        return self._worker is None

    def expect(self, penalty: float, answer: int) -> None:
        """Say, before it begins, what the draft must know of the request; see `messages.Begin`."""
        self._penalty, self._answer = penalty, answer

    def begin(self, inputs: dict[str, Any]) -> None:
        """Send the inputs, a processor's output. The draft encodes the video at once."""
        self._send(Begin(self._request, inputs, self._limit, self._penalty, self._answer))

    def prefill(self, kept: Tensor, grids: tuple[VideoGrid, ...]) -> None:
        """Let the draft read its prompt. kept: (K,) indices into the tokens of the target's grids."""
        self._send(Prefill(self._request, kept, grids))

    def read(self, prompt: dict[str, Tensor]) -> None:
        """In place of `begin` and `prefill` with a shared vision tower. prompt: see `kept_prompt`."""
        self._send(ReadPrompt(self._request, prompt, self._limit, self._penalty, self._answer))

    def ready(self) -> bool:
        """Whether the draft can propose: it has read its prompt, or does so when it is asked. Does not wait."""
        if self._held is not None:
            return True
        while not self._ready and self._hear(wait=False):
            pass
        return self._ready

    def propose(self, count: int) -> None:
        """Ask for `count` tokens after everything proposed so far. Does not wait."""
        if count <= 0:
            return
        if self._held is not None:
            held, self._held = self._held, None
            for record in held:
                self._send(record)
        if self.ready():
            self._asked += count
            self._send(Propose(self._request, count))

    @property
    def waiting(self) -> int:
        """Tokens asked for and not yet taken, drafted or not."""
        return self._asked + len(self._arrived)

    def peek(self) -> Proposal | None:
        """The next proposed token if it is there. Does not wait."""
        while not self._arrived and self._asked and self._hear(wait=False):
            pass
        return self._arrived[0] if self._arrived else None

    def take(self, count: int) -> list[Proposal]:
        """The next `count` proposed tokens, waiting for them; fewer if fewer were asked for or the draft is lost."""
        while len(self._arrived) < count and self._asked and self._hear(wait=True):
            pass
        return [self._arrived.popleft() for _ in range(min(count, len(self._arrived)))]

    def commit(self, length: int, tokens: list[int]) -> None:
        """The first `length` generated tokens are kept, `tokens` follow. Everything else proposed is dropped."""
        self._epoch += 1
        self._asked = 0
        self._arrived.clear()
        self._send(Commit(self._request, length, tokens))

    def end(self) -> None:
        """The request is over."""
        if self._held is None:
            self._send(End(self._request))
        if self._worker is not None:
            self._worker.forget(self._request)

    def _send(self, record: Any) -> None:
        if self._held is not None:
            self._held.append(record)
        elif self._worker is not None:
            try:
                self._worker.send(record)
            except DraftLost as lost:
                self._lose(str(lost))

    def _hear(self, wait: bool) -> bool:
        """Take in the next record of this request. Returns whether there was one."""
        try:
            while not self._inbox:
                if self._worker is None or not self._worker.fetch(wait):
                    return False
        except DraftLost as lost:
            self._lose(str(lost))
            return False
        match self._inbox.popleft():
            case Ready(_, seconds, warning, began, ended, tokens):
                self._ready = True
                self._stats.trace.did("draft", "prefill", ended, ended - began, tokens)
                self._stats.seconds.draft_prefill = seconds
                self._stats.warnings += [warning] if warning else []
            case Token(_, epoch, token, prob, seconds, ended):
                self._stats.draft_forwards += 1
                self._stats.trace.did("draft", "propose", ended, seconds, 1)
                if epoch == self._epoch:
                    self._on_step(seconds)
                    self._asked -= 1
                    self._arrived.append(Proposal(token, prob))
            case NoMore(_, epoch, seconds):
                if epoch == self._epoch:
                    self._on_step(seconds)
                    self._asked = 0
            case Failed(_, reason):
                self._lose(reason)
        return True

    def _lose(self, reason: str) -> None:
        self._stats.draft_lost = reason
        self._ready, self._asked, self._held = False, 0, None
        if self._worker is not None:
            self._worker.forget(self._request)
            self._worker = None
