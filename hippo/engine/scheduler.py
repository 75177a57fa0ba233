"""Which request does what next: who is read, who enters, whose prompt goes on, who decodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum

from hippo.request import Read, Request
from hippo.sequence import Progress, Sequence
from hippo.stats import Stats
from hippo.text import TextStream


class State(Enum):
    """Of a request, in this order."""

    WAITING = "waiting"
    READING = "reading"
    PREFILL = "prefill"
    DECODING = "decoding"
    DONE = "done"


@dataclass(eq=False)
class Job:
    """One request in the engine. pieces: of text that the caller has not taken yet. tokens: the most that its KV cache
    will hold. on_change: called when there are new pieces, or when the request has ended."""

    request: Request
    text: TextStream
    progress: Progress | None = None
    state: State = State.WAITING
    stats: Stats = field(default_factory=Stats)
    warnings: tuple[str, ...] = ()
    pieces: deque[str] = field(default_factory=deque)
    tokens: int = 0
    error: BaseException | None = None
    cancelled: bool = False
    reading: Future[Read] | None = None
    sequence: Sequence | None = None
    on_change: Callable[[], None] = lambda: None

    @property
    def is_inside(self) -> bool:
        """Whether a callback of this very request has begun the step."""
        return self.sequence is not None and self.sequence.is_running

    @property
    def has_been_read(self) -> bool:
        """Whether its inputs are there."""
        return self.reading is not None and self.reading.done()

    def end(self, error: BaseException | None = None) -> None:
        """Mark it as done; `error` is raised where its text is read."""
        if self.state is not State.DONE:
            self.state, self.error = State.DONE, error
            self.on_change()


class Scheduler:
    """First come, first served. max_running: requests that hold a KV cache at the same time. ahead: requests that are
    read before there is room for them. fits: whether memory holds one more request."""

    def __init__(self, max_running: int, ahead: int, fits: Callable[[Job], bool]) -> None:
        self.max_running, self._ahead, self._fits = max_running, ahead, fits
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []

    @property
    def jobs(self) -> list[Job]:
        """All that have not ended."""
        return [*self.running, *self.waiting]

    def to_read(self) -> list[Job]:
        """Those whose videos shall be read now."""
        free = max(0, self.max_running - len(self.running))
        return [job for job in list(self.waiting)[: free + self._ahead] if job.state is State.WAITING]

    def admit(self) -> list[Job]:
        """Those that have been read and enter now, the oldest first; a younger one may pass one that is still read."""
        entering = []
        for job in list(self.waiting):
            if len(self.running) == self.max_running:
                break
            if job.cancelled or not job.has_been_read:
                continue
            if not self._fits(job) and self.running:
                break  # it is next, however small those behind it are
            self.waiting.remove(job)
            self.running.append(job)
            entering.append(job)
        return entering

    def next_prefill(self) -> Job | None:
        """The one whose prompt is read further."""
        return next((job for job in self.running if job.state is State.PREFILL and not job.is_inside), None)

    def decoding(self) -> list[Job]:
        """Those that decode."""
        return [job for job in self.running if job.state is State.DECODING and not job.is_inside]

    def drop_done(self) -> None:
        """Forget those that have ended."""
        self.running = [job for job in self.running if job.state is not State.DONE]
        for job in [job for job in self.waiting if job.state is State.DONE]:
            self.waiting.remove(job)
