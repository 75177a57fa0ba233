"""Decoding in processes with a limit of memory, so that a file that makes a decoder crash ends one of them alone."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO, cast

from PIL import Image

from hippo.errors import MediaError, OutOfMemory
from hippo.video.decoder import Decoder, OpenClip
from hippo.video.files import Media
from hippo.video.reader import Video
from hippo.video.sampling import Sampling
from hippo.video.worker import receive, send, shared

# numpy computes nothing there; each of FFmpeg's threads would reserve an arena of 64 MiB.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
_KEPT = 16 << 20  # bytes of frames whose memory waits for the next clip
_DYING = 5.0  # seconds in which a process whose channel is closed is gone


class Workers:
    """Processes that decode for this one, each for one request at a time. They start when they are needed.

    memory: bytes that one may allocate, beside the frames that it hands over, which are bounded by the free memory.
    seconds: for one clip or picture. kept: how many wait for the next request; more end with their request.
    """

    def __init__(self, memory: int, seconds: float, kept: int = 2) -> None:
        self._memory, self._seconds, self._kept = memory, seconds, kept
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all = weakref.WeakSet[_Process]()

    def start(self) -> None:
        """Have one ready for the first request. Raises OutOfMemory."""
        self._give(self._take())

    @contextmanager
    def decoding(self) -> Iterator[Decoder]:
        """A decoder for one request: a process from its first file on."""
        remote = _Remote(self._take)
        try:
            yield remote
        finally:
            if remote.process is not None:
                self._give(remote.process)

    def close(self) -> None:
        """End all, those that are at work too: their requests fail with MediaError."""
        with self._lock:
            for process in self._idle:
                process.end()
            self._idle.clear()
            for process in list(self._all):
                process.kill()

    def _take(self) -> _Process:
        with self._lock:
            while self._idle:
                if (process := self._idle.pop()).alive:
                    return process
            process = _Process(self._memory, self._seconds)
            self._all.add(process)
            return process

    def _give(self, process: _Process) -> None:
        with self._lock:
            if len(self._idle) < self._kept and process.forget():
                self._idle.append(process)
            else:
                process.end()


class _Process:
    """One process, and the channel to it. It ends with this object."""

    def __init__(self, memory: int, seconds: float) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(seconds)
        self._seconds, self._tired = seconds, False
        with theirs:
            command = [sys.executable, "-m", "hippo.video.worker", str(theirs.fileno()), str(memory)]
            try:
                self._child = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=os.environ | _ENVIRONMENT,
                    process_group=0,  # Ctrl-C is for the process that talks to the user
                )
            except OSError as error:
                self._channel.close()
                cause = f"no process can be started to decode in ({error.strerror})"
                raise OutOfMemory(cause, "let fewer requests run") from None
        self.frames = _file()  # kept for the next clip: new pages take most of the time of handing over
        self._end = weakref.finalize(self, _end, self._child, self._channel, self.frames)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._end.alive and self._child.poll() is None

    def end(self) -> None:
        """End it at once."""
        self._end()

    def kill(self) -> None:
        """The same from another thread than that which uses it, and which notices."""
        self._child.kill()

    def forget(self) -> bool:
        """Have it close its clips; whether another request may use it."""
        if self._tired or not self.alive:
            return False
        with suppress(OSError):
            send(self._channel, ("forget", ()))
            return True
        return False

    def call(self, method: str, name: Path | str, arguments: tuple[Any, ...], files: Sequence[int]) -> Any:
        """What it answers. name: of the file. Raises HippoError; MediaError if the process is lost by that."""
        called = name.name if isinstance(name, Path) else name
        try:
            send(self._channel, (method, (name, *arguments)), files)
            (answer, self._tired), _ = receive(self._channel)
        except TimeoutError:
            self.end()
            cause = f"{called} takes more than {self._seconds:g} s to decode"
            raise MediaError(cause, "cut it, or ask for fewer frames") from None
        except (OSError, EOFError):
            cause = f"{called} ends the process that decodes it ({self._last_words()})"
            raise MediaError(cause, "convert it to H.264 first") from None
        except BaseException:
            self.end()  # interrupted within a record
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _last_words(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_DYING)
        self.end()
        code = self._child.returncode
        return signal.Signals(-code).name if code < 0 else f"code {code}"


def _end(child: subprocess.Popen[bytes], channel: socket.socket, frames: BinaryIO) -> None:
    child.kill()
    child.wait()
    channel.close()
    frames.close()


class _Remote(Decoder):
    """Decodes in a process. take: gives one."""

    def __init__(self, take: Callable[[], _Process]) -> None:
        self._take, self._places = take, itertools.count()
        self.process: _Process | None = None

    def clip(self, path: Media, sampling: Sampling) -> OpenClip:
        """See `Decoder`."""
        place = next(self._places)
        with _content(path) as files:
            size = self.call("clip", path, place, sampling, files=files)
        return _Clip(path, size, self, place)

    def sample(
        self,
        clip: OpenClip,
        sampling: Sampling,
        most: int | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Video:
        """See `Decoder`. progress: called at the end alone."""
        assert isinstance(clip, _Clip) and self.process is not None
        file = self.process.frames.fileno()
        try:
            shape, known = self.call("sample", clip.path, clip.place, sampling, most, files=[file])
            video = Video(shared(file, shape).copy(), **known)
        finally:
            if self.process.alive and os.fstat(file).st_size > _KEPT:
                os.truncate(file, 0)
        if progress is not None:
            progress(1.0)
        return video

    def picture(self, path: Media) -> Image.Image:
        """See `Decoder`."""
        with _content(path) as files, _file() as file:
            shape = self.call("picture", path, files=[*files, file.fileno()])
            return Image.fromarray(shared(file.fileno(), shape))

    def call(self, method: str, path: Media, *arguments: Any, files: Sequence[int] = ()) -> Any:
        """See `_Process.call`."""
        if self.process is None:
            self.process = self._take()
        return self.process.call(method, path if isinstance(path, Path) else path.name, arguments, files)


@dataclass(frozen=True)
class _Clip:
    """A clip that is open in another process. place: its number there."""

    path: Media
    size: tuple[int, int]
    remote: _Remote
    place: int

    def estimate(self, sampling: Sampling) -> int:
        """See `Clip`."""
        return int(self.remote.call("estimate", self.path, self.place, sampling))


@contextmanager
def _content(path: Media) -> Iterator[list[int]]:
    """Files to send so that the other process can read this one: none for a path."""
    if isinstance(path, Path):
        yield []
        return
    with _file() as file:
        copyfileobj(path.opened(), file, 1 << 20)
        file.seek(0)
        yield [file.fileno()]


def _file() -> BinaryIO:
    """An empty file in memory, which two processes can share and which is gone when neither has it. Not in /dev/shm,
    of which containers have 64 MiB."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("hippo-frames"), "w+b", buffering=0)
    return cast(BinaryIO, tempfile.TemporaryFile(buffering=0))
