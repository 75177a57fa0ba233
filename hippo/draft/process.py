"""Start, watch and end the draft's process."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from torch import nn

from hippo.draft.child import Child, Forked, Threaded, may_fork
from hippo.draft.messages import Failed, Loaded, put, take
from hippo.draft.worker import work
from hippo.errors import HippoError
from hippo.threads import shares


class DraftLost(Exception):
    """The draft's process died, failed or kept silent too long. str() says which."""


class DraftProcess:
    """A child process with the draft model in it, and a pipe to it.

    source: a checkpoint folder, a hub id, or a model in memory. timeout: seconds of silence after which it counts as
    lost. trust_remote_code: whether code that a checkpoint brings may run. threaded: it is a thread of this process,
    see `hippo.draft.child`. Starting it returns at once; `wait_loaded` waits for the model.
    """

    def __init__(
        self,
        source: str | Path | nn.Module,
        dtype: str,
        device: str,
        timeout: float,
        trust_remote_code: bool = False,
        threaded: bool = False,
    ) -> None:
        threads = shares()[1]
        ours, theirs = socket.socketpair()
        # A send never blocks for good on a stopped process.
        whole, part = int(timeout), int(timeout % 1 * 1e6)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", whole, part))
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._copy: str | None = None
        self._child: Child
        with theirs:
            pipe = theirs.fileno()
            inside: Child | None = None
            if threaded:
                own = os.dup(pipe)
                inside = Threaded(lambda: work(own, source, dtype, device, 0, trust_remote_code), device)
            elif may_fork(device, threads):
                with suppress(OSError):  # too little memory for a copy of this process
                    inside = Forked(lambda: work(pipe, source, dtype, device, threads, trust_remote_code), pipe)
            if inside is None:
                self._copy = _copy_of(source) if isinstance(source, nn.Module) else None
            trust = "trust" if trust_remote_code else "no code"
            self._child = inside or _fresh(pipe, [self._copy or str(source), dtype, device, trust, str(threads)])
        self._pipe = Connection(ours.detach())
        self.timeout = timeout
        self.loaded: Loaded | None = None
        self.epoch = 0  # Begin, Read and Settle records sent
        self._end = weakref.finalize(self, _end, self._child, self._pipe, self._copy)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether the child runs and has not been given up."""
        return self._end.alive and self._child.poll() is None

    def wait_loaded(self, timeout: float = 1800.0) -> Loaded:
        """Block until the draft model is loaded. Raises HippoError if it cannot be."""
        if self.loaded is None:
            try:
                message = self.receive(timeout)
            except DraftLost as lost:
                raise HippoError(
                    f"the draft model did not load ({lost})", "check --draft, or use --method ar"
                ) from None
            assert isinstance(message, Loaded)
            self.loaded = message
            if self._copy is not None:
                shutil.rmtree(self._copy, ignore_errors=True)
        return self.loaded

    def send(self, message: Any) -> None:
        """Send one record. Raises DraftLost."""
        try:
            put(self._pipe, message)
        except OSError as error:
            raise DraftLost(self._cause(error)) from None
        except BaseException:
            self.close()  # interrupted in mid-record: the pipe is out of step
            raise

    def receive(self, timeout: float | None = None) -> Any:
        """The next record. timeout: in seconds, the process's own by default. Raises DraftLost."""
        seconds = self.timeout if timeout is None else timeout
        try:
            message = take(self._pipe) if self._pipe.poll(seconds) else None
        except (OSError, EOFError) as error:
            raise DraftLost(self._cause(error)) from None
        except BaseException:
            self.close()
            raise
        if message is None:
            raise DraftLost(f"the draft's process was silent for {seconds:g} s")
        if isinstance(message, Failed):
            raise DraftLost(f"the draft's process failed: {message.reason}")
        return message

    def pending(self) -> bool:
        """Whether a record is waiting. Raises DraftLost."""
        try:
            return self._pipe.poll()
        except OSError as error:
            raise DraftLost(self._cause(error)) from None

    def close(self) -> None:
        """End the process; at once if it does not go by itself."""
        self._end()

    def _cause(self, error: Exception) -> str:
        """Why the pipe broke: the child's last words, else how it ended."""
        try:
            while self._pipe.poll():
                if isinstance(last := take(self._pipe), Failed):
                    return f"the draft's process failed: {last.reason}"
        except (OSError, EOFError):
            pass
        try:
            code = self._child.wait(0.5)
        except subprocess.TimeoutExpired:
            return f"the pipe to the draft's process broke ({type(error).__name__})"
        return f"the draft's process died with {f'signal {-code}' if code < 0 else f'code {code}'}"


def _fresh(pipe: int, arguments: list[str]) -> subprocess.Popen[bytes]:
    """A new interpreter that runs the worker; the last argument is its number of threads."""
    return subprocess.Popen(
        [sys.executable, "-c", "from hippo.draft.worker import main; main()", str(pipe), *arguments],
        pass_fds=[pipe],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": arguments[-1], "TRANSFORMERS_VERBOSITY": "error"},
        process_group=0,  # Ctrl-C is for the process that talks to the user
    )


def _copy_of(model: Any) -> str:
    """A checkpoint folder of a model in memory. Pickling would not do: it loses what transformers keeps beside it."""
    folder = tempfile.mkdtemp(prefix="hippo-draft-")
    model.save_pretrained(folder)
    return folder


def _end(child: Child, pipe: Connection, copy: str | None) -> None:
    pipe.close()
    deadline = time.monotonic() + 1.0
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if child.poll() is None:
        child.kill()
        child.wait()
    if copy is not None:
        shutil.rmtree(copy, ignore_errors=True)
