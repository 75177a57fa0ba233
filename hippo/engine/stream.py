"""One answer on its way, as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hippo.engine.scheduler import Job, State
from hippo.request import Output
from hippo.stats import Stats
from hippo.trace import Span, TokenInfo

if TYPE_CHECKING:
    from hippo.engine.engine import Engine


class Stream:
    """An answer on its way: iterate it, with `for` or `async for`, for pieces of text, or `await` it for its `Output`.
    `output` is the answer so far, whole after the last piece.

    The thread that iterates also does the work, for all requests of the engine; `async` leaves the work to a thread of
    the engine's. A stream may be dropped at any time: other requests go on, and what it holds is freed when it is
    collected. `close()` frees it at once, and may be called from any thread.
    """

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next piece of text. Raises HippoError."""
        job = self._job
        self._engine.drive(lambda: bool(job.pieces) or job.state is State.DONE)
        if (piece := self._take()) is None:
            raise StopIteration
        return piece

    def _take(self) -> str | None:
        """A piece that is there; None at the end. Raises HippoError."""
        if self._job.pieces and not self._job.cancelled:
            return self._job.pieces.popleft()
        if (error := self._job.error) is not None:
            self._job.error = None
            raise error
        return None

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        """As `__next__`."""
        job, loop, changed = self._job, asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(changed.set)

        job.on_change = wake
        try:
            while not (job.pieces or job.state is State.DONE):
                self._engine.start()
                await changed.wait()
                changed.clear()
        except BaseException:
            self.cancel()
            raise
        if (piece := self._take()) is None:
            raise StopAsyncIteration
        return piece

    def __await__(self) -> Generator[Any, None, Output]:
        return self._finish().__await__()

    async def _finish(self) -> Output:
        async for _ in self:
            pass
        return self.output

    def result(self) -> Output:
        """The whole answer. Raises HippoError."""
        for _ in self:
            pass
        return self.output

    def cancel(self) -> None:
        """Stop answering at the next step. Does not wait."""
        self._engine.cancel(self._job)

    def close(self) -> None:
        """Stop answering; waits for the step under way."""
        self._engine.cancel(self._job, wait=True)

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit parts of it may be gone already
            self.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def state(self) -> State:
        """What the request is doing."""
        return self._job.state

    @property
    def tokens(self) -> list[TokenInfo]:
        """What is known of the tokens so far."""
        return list(self._job.stats.trace.tokens)

    @property
    def timeline(self) -> list[Span]:
        """What target and draft did so far. What the draft did comes as the target gets to know of it."""
        return list(self._job.stats.trace.timeline)

    @property
    def output(self) -> Output:
        """The answer so far."""
        job = self._job
        return Output(job.text.text, job.text.token_ids, job.stats, job.warnings + warnings_of(job.stats))


def warnings_of(stats: Stats) -> tuple[str, ...]:
    """What the user should know about an answer's draft; empty if all went well."""
    lost = (f"{stats.draft_lost}; the target finished the answer alone",) if stats.draft_lost else ()
    return (*stats.warnings, *lost)
