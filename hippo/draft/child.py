"""Where the draft works. On one GPU two processes take turns, so there it is a thread of this process, on a stream of
its own, whose work the GPU does beside the target's. Elsewhere it is a process. Forked from this one it shares Python,
torch and transformers with it, some 400 MB, and starts at once; that is only safe on Linux, on a CPU, with one thread
each and nobody else in the process. Otherwise it is a fresh interpreter: not multiprocessing's, which would import the
user's main module a second time."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

import torch

from hippo.errors import HippoError


class Child(Protocol):
    """What is used of a child process, as subprocess.Popen has it."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""

    def kill(self) -> None:
        """End it at once."""


def may_fork(device: str, threads: int) -> bool:
    """Whether a draft on `device` with so many threads may be a fork. A fork cannot use a GPU that its parent uses, nor
    OpenMP's threads after its parent did; and another Python thread might hold a lock that the fork waits for."""
    alone = threading.active_count() == 1 and not torch.cuda.is_initialized()
    return sys.platform == "linux" and device == "cpu" and threads == 1 and alone


PLACES = ("auto", "process", "thread")


def is_thread(place: str, target: str, draft: str) -> bool:
    """Whether the draft is to work in a thread; place: one of PLACES, "auto" for one where both models are on one GPU.
    target, draft: their devices. Raises HippoError."""
    if place not in PLACES:
        raise HippoError(f"unknown place for the draft {place!r}", f"use one of: {', '.join(PLACES)}")
    here, there = torch.device(target), torch.device(draft)
    one_gpu = here.type == there.type == "cuda" and (here.index or 0) == (there.index or 0)
    return place == "thread" or (place == "auto" and one_gpu)


@contextmanager
def _stream_of_its_own(device: str) -> Iterator[None]:
    """Inside, this thread's work on a GPU is queued apart from what other threads queue there."""
    if torch.device(device).type != "cuda":
        yield
        return
    # The draft's small forwards go first, or each would wait behind one of the target's large ones.
    stream = torch.cuda.Stream(device, priority=-1)
    stream.wait_stream(torch.cuda.default_stream(device))  # a model in memory may still be on its way there
    with torch.cuda.stream(stream):
        yield


class Threaded:
    """A thread that runs `run`, which returns an exit code, on a stream of its own if the device is a GPU.

    Nobody can end a thread: it goes when its pipe is closed, and one that hangs is left to itself.
    """

    def __init__(self, run: Callable[[], int], device: str) -> None:
        self.pid = os.getpid()
        self._code: int | None = None
        self._run, self._device = run, device
        self._thread = threading.Thread(target=self._work, name="hippo-draft", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        code = 1
        try:
            with _stream_of_its_own(self._device):
                code = self._run()
        finally:
            self._code = code

    def poll(self) -> int | None:
        """See Child."""
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """See Child."""
        if self._code is None:
            self._thread.join(timeout)
        if self._code is None:
            raise subprocess.TimeoutExpired("the draft's thread", timeout or 0.0)
        return self._code

    def kill(self) -> None:
        """Leave it to itself: it is counted as ended."""
        self._code = 1


class Forked:
    """A fork that runs `run` and ends with the code it returns. pipe: the one open file it keeps, beside stderr."""

    def __init__(self, run: Callable[[], int], pipe: int) -> None:
        """Raises OSError if there is no room for another process."""
        self._code: int | None = None
        # No Ctrl-C between the fork and the moment when the child is on its own.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            with warnings.catch_warnings():
                # Python counts the idle threads of numerical libraries, which prepare for forks themselves.
                warnings.simplefilter("ignore", DeprecationWarning)
                self.pid = os.fork()
            if self.pid == 0:
                code = 1
                try:
                    _leave(pipe)
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                    with torch.autocast("cpu", enabled=False):
                        code = run()
                finally:
                    os._exit(code)  # nothing that belongs to the parent is flushed or finalised here
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """See Child."""
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else waited for it
                pid, status = self.pid, 0
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """See Child."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("the draft's process", timeout or 0.0)
            time.sleep(0.005)
        return code

    def kill(self) -> None:
        """See Child."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _leave(pipe: int) -> None:
    """Let go of what the parent shares: signals, its terminal's Ctrl-C, and open files, which it may want to close."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    sys.stderr = sys.__stderr__
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != pipe:
            with suppress(OSError):  # the listing's own
                os.close(int(name))
    gc.freeze()  # looking for garbage among the parent's objects would copy their memory
