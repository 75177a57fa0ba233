"""The ways to run the draft's side: a fork of this process, a fresh interpreter, or a thread.

A fork shares Python, torch and transformers with this process, some 400 MB, and starts at once, but is only safe on
Linux, on a CPU, with one thread each and no other thread in the process. A fresh interpreter is not multiprocessing's,
which would import the user's main module a second time. On one GPU two processes take turns; a thread with a stream of
its own does not.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress

import torch


def may_fork(device: str, threads: int) -> bool:
    """Whether a draft on `device` with so many threads may be a fork. A fork cannot use a GPU that its parent uses, nor
    OpenMP's threads after its parent did; and another Python thread might hold a lock that the fork waits for."""
    alone = threading.active_count() == 1 and not torch.cuda.is_initialized()
    return sys.platform == "linux" and device == "cpu" and threads == 1 and alone


class Threaded:
    """A thread that runs `run`, which returns an exit code. Nothing can end a thread from outside: it goes when its
    transport is closed, and one that hangs is counted as ended."""

    def __init__(self, run: Callable[[], int], device: str) -> None:
        self.pid = os.getpid()
        self._run, self._device = run, device
        self._code: int | None = None
        self._thread = threading.Thread(target=self._work, name="hippo-draft", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        code = 1
        try:
            stream = None
            if torch.device(self._device).type == "cuda":
                # The draft's small forwards go first, or each would wait behind a large one of the target.
                stream = torch.cuda.Stream(self._device, priority=-1)
                stream.wait_stream(torch.cuda.default_stream(self._device))  # a model may still be copied there
            with torch.cuda.stream(stream) if stream else nullcontext():
                code = self._run()
        finally:
            self._code = code

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._code

    def kill(self) -> None:
        """Count it as ended."""
        self._code = 1


class Forked:
    """A fork that runs `run` and ends with the code it returns. pipe: the one open file it keeps, beside stderr."""

    def __init__(self, run: Callable[[], int], pipe: int) -> None:
        """Raises OSError if there is no memory for another process."""
        self._code: int | None = None
        # A Ctrl-C must not reach the child before it has left its parent's process group.
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
        """The exit code, negative for a signal, or None while it runs."""
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # another part of the program waited for it
                pid, status = self.pid, 0
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _leave(pipe: int) -> None:
    """Give up what a fork shares with its parent: signals, the terminal's Ctrl-C, and its open files."""
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


def fresh(pipe: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    """A new interpreter that runs `hippo.draft.__main__`. arguments: the last is its number of threads."""
    return subprocess.Popen(
        [sys.executable, "-m", "hippo.draft", str(pipe), *arguments],
        pass_fds=[pipe],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ
        | {"OMP_NUM_THREADS": arguments[-1], "OMP_WAIT_POLICY": "PASSIVE", "TRANSFORMERS_VERBOSITY": "error"},
        process_group=0,  # Ctrl-C is for the process that talks to the user
    )
