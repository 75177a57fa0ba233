"""Start, watch and end the draft's worker."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from torch import nn

from hippo.checkpoints import LARGE
from hippo.device import shares
from hippo.draft.child import Forked, Threaded, fresh, may_fork
from hippo.draft.drafter import Drafter
from hippo.draft.messages import Begin, Failed, Loaded, Prefill, ReadPrompt, Ready
from hippo.draft.proposer import Plugin
from hippo.draft.transport import ProcessTransport, ThreadTransport, Transport
from hippo.draft.worker import Inline, work
from hippo.errors import BadRequest, CheckpointError, DraftLost
from hippo.stats import Stats

PLACES = ("auto", "process", "thread", "inline")
_PREFILL_TIMEOUTS = 10  # while it reads a prompt the worker may be silent for so many times its timeout
_LOADING_SILENCE = 3.0  # seconds: no timeout is shorter while torch is imported, which holds Python's lock
Child = Forked | Threaded | Popen[bytes] | Inline
_HINT = "check --draft, or use --method ar"


def placement(place: str, target: str, draft: str, weights: int = 0) -> str:
    """Where the draft works: "process", "thread" or "inline".

    place: one of PLACES. target, draft: their devices. weights: bytes of both models' weights. "auto" is a process
    where each model has a device of its own, and for a pair so small that neither waits for memory. Where both read
    from one memory, working at the same time slows both down, and what was drafted past a rejection is lost: there
    "auto" is inline on a CPU, and a thread on a GPU. Raises BadRequest.
    """
    if place not in PLACES:
        raise BadRequest(f"unknown place for the draft {place!r}", f"use one of: {', '.join(PLACES)}")
    here, there = torch.device(target), torch.device(draft)
    if place != "auto":
        return place
    if here.type == there.type == "cuda":
        return "thread" if (here.index or 0) == (there.index or 0) else "process"
    return "inline" if here.type == there.type and weights > LARGE else "process"


class DraftWorker:
    """A process or thread with the draft model, which serves several requests at a time. It starts at once.

    source: a checkpoint folder, a hub id, a model in memory, or, inline only, a plug-in. timeout: seconds of silence
    after which it counts as lost. trust_remote_code: whether code that a checkpoint brings may run. place: see
    `placement`. bits: of its weights. The worker ends with `close` or with this object. `close` may be called from any
    thread, all else from one at a time.
    """

    def __init__(
        self,
        source: str | Path | nn.Module | Plugin,
        dtype: str,
        device: str,
        timeout: float,
        *,
        trust_remote_code: bool = False,
        place: str = "process",
        bits: int = 16,
        attention: str = "",
    ) -> None:
        self.timeout = timeout
        self.loaded: Loaded | None = None
        self._reason = "the draft was closed"
        self._inboxes: dict[int, deque[Any]] = {}
        self._reading: set[int] = set()  # requests whose prompt is not read yet
        self._heard = time.monotonic()  # when a record came, or a prompt was sent
        self._ids = itertools.count(1)
        self.beside = place != "inline"  # whether it can work at the same time as the target
        how: tuple[Child, Transport, str | None]
        if place == "inline" or isinstance(source, Plugin):
            inline = Inline(source, dtype, device, trust_remote_code, bits, attention, timeout)
            how = inline, inline, None
        elif place == "thread":
            ours, theirs = ThreadTransport.pair()
            run = partial(work, theirs, source, dtype, device, 0, trust_remote_code, bits, attention)
            how = Threaded(run, device), ours, None
        else:
            how = _in_process(source, dtype, device, timeout, trust_remote_code, bits, attention)
        self._child, self._transport, self._copy = how
        self._end = weakref.finalize(self, _end, *how)

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the worker runs and has not been given up."""
        return self._end.alive and self._child.poll() is None

    def wait_loaded(self) -> Loaded:
        """Block until the draft model is loaded. Raises CheckpointError if the worker says that loading failed, and
        DraftLost if it dies or is silent for `timeout` seconds."""
        while self.loaded is None:
            try:
                record = self._receive(max(self.timeout, _LOADING_SILENCE))
            except DraftLost as lost:
                raise DraftLost(f"the draft model did not load ({lost.cause})", _HINT) from None
            if isinstance(record, Failed):
                self.close()
                raise CheckpointError(f"the draft model did not load ({record.reason})", _HINT)
            if isinstance(record, Loaded):
                self.loaded = record
                _remove(self._copy)
        return self.loaded

    def drafter(
        self, stats: Stats, *, on_step: Callable[[float], None], limit: int, shared_vision: bool, late: bool = False
    ) -> Drafter:
        """A new request's view; see `Drafter`. The model must be loaded."""
        return Drafter(self, stats, on_step, limit, shared_vision, late)

    def close(self) -> None:
        """End the worker, within a second if it does not go by itself."""
        self._end()

    def register(self, inbox: deque[Any]) -> int:
        """A new request's id. Its records will be put into `inbox`."""
        request = next(self._ids)
        self._inboxes[request] = inbox
        return request

    def forget(self, request: int) -> None:
        """Drop what arrives for a request from now on."""
        self._inboxes.pop(request, None)
        self._reading.discard(request)

    def send(self, record: Any) -> None:
        """Send a record. Raises DraftLost."""
        if isinstance(record, Begin | Prefill | ReadPrompt):
            self._reading.add(record.request)
            self._heard = time.monotonic()
        with self._losing():
            self._transport.send(record)

    def fetch(self, wait: bool) -> bool:
        """Put the next record, of whatever request, into its inbox. Returns whether there was one; with `wait` there
        is. Raises DraftLost, also if the worker is silent for too long."""
        seconds = self.timeout * (_PREFILL_TIMEOUTS if self._reading else 1)
        record = self._receive(seconds if wait else 0)
        if record is None:
            if self._reading and time.monotonic() > self._heard + seconds:
                raise self._silent(seconds)
            return False
        self._heard = time.monotonic()
        if isinstance(record, Failed) and record.request == 0:
            raise self._lose(f"the draft's process failed: {record.reason}")
        if isinstance(record, Ready | Failed):
            self._reading.discard(record.request)
        if (inbox := self._inboxes.get(record.request)) is not None:
            inbox.append(record)
        return True

    def _silent(self, seconds: float) -> DraftLost:
        return self._lose(f"the draft's process was silent for {seconds:g} s")

    def _lose(self, reason: str) -> DraftLost:
        """Give the worker up, for the requests of all. Returns what to raise, with the first reason there was."""
        if self._end.alive:
            self._reason = reason
            self.close()
        return DraftLost(self._reason)

    def _receive(self, seconds: float) -> Any | None:
        """The next record. Raises DraftLost if there is none in so many seconds, but None for 0 seconds."""
        with self._losing():
            record = self._transport.receive(seconds)
        if record is None and seconds:
            raise self._silent(seconds)
        return record

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except ConnectionError as error:
            raise self._lose(self._cause(error)) from None
        except BaseException:
            self.close()  # interrupted within a record
            raise

    def _cause(self, error: ConnectionError) -> str:
        """Why the transport broke: the worker's last words, else how it ended."""
        if not self._end.alive:
            return self._reason
        with suppress(ConnectionError):
            while (record := self._transport.receive(0)) is not None:
                if isinstance(record, Failed) and record.request == 0:
                    return f"the draft's process failed: {record.reason}"
        code = wait_for(self._child, 0.5)
        if code is None:
            return f"the pipe to the draft's process broke ({error})"
        return f"the draft's process died with {f'signal {-code}' if code < 0 else f'code {code}'}"


def _in_process(
    source: Any, dtype: str, device: str, timeout: float, trust: bool, bits: int, attention: str
) -> tuple[Child, Transport, str | None]:
    """A fork, or else a fresh interpreter, with the folder that it loads a model in memory from."""
    threads = shares()[1]
    ours, theirs = ProcessTransport.pair(timeout)

    def run() -> int:
        transport = ProcessTransport(Connection(theirs.detach()))
        return work(transport, source, dtype, device, threads, trust, bits, attention)

    with theirs:
        pipe = theirs.fileno()
        if may_fork(device, threads):
            with suppress(OSError):  # too little memory for a copy of this process
                return Forked(run, pipe), ours, None
        copy = None
        if isinstance(source, nn.Module):  # pickling would lose what transformers keeps beside a model
            copy = tempfile.mkdtemp(prefix="hippo-draft-")
            source.save_pretrained(copy)  # type: ignore[operator]
        trusted = "trust" if trust else "no code"
        how = [dtype, device, trusted, str(bits), attention, str(threads)]
        return fresh(pipe, [copy or str(source), *how]), ours, copy


def _end(child: Child, transport: Transport, copy: str | None) -> None:
    transport.close()
    if wait_for(child, 1.0) is None:
        child.kill()
        wait_for(child, 10.0)
    _remove(copy)


def wait_for(child: Child, seconds: float) -> int | None:
    """The exit code of a child, or None if it still runs after so many seconds."""
    deadline = time.monotonic() + seconds
    while (code := child.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return code


def _remove(copy: str | None) -> None:
    if copy is not None:
        shutil.rmtree(copy, ignore_errors=True)
