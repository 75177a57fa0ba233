"""Decodes for the process that started it, within a limit of memory; run by `hippo.video.process`, not by hand."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import pickle
import resource
import select
import socket
import struct
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from hippo.errors import MediaError
from hippo.video.clip import Clip
from hippo.video.files import Media, Stored
from hippo.video.frames import read_picture
from hippo.video.reader import Video, sample
from hippo.video.sampling import Sampling

HEADER = struct.Struct("!QB")  # bytes of a record, and how many open files come with it
_STACK = 1 << 20  # bytes
_UNTIRED = 512 << 20  # bytes of addresses: twice those of a process that has read little
_LARGEST = 8  # bytes of a decoded pixel, at most
Source = tuple[Path | str, list[int]]  # a path; or what to call a file that came open, and that file


def send(channel: socket.socket, record: Any, files: Sequence[int] = ()) -> None:
    """Send a record, and open files. Raises OSError."""
    data = pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
    socket.send_fds(channel, [HEADER.pack(len(data), len(files))], files)
    channel.sendall(data)


def receive(channel: socket.socket) -> tuple[Any, list[int]]:
    """The next record, and the files that came with it. Raises OSError, or EOFError if the other end is gone."""
    head, files, _, _ = socket.recv_fds(channel, HEADER.size, 2)
    if len(head) < HEADER.size:
        raise EOFError
    data = bytearray(HEADER.unpack(head)[0])
    view = memoryview(data)
    while view:
        if not (count := channel.recv_into(view)):
            raise EOFError
        view = view[count:]
    return pickle.loads(data), list(files)


def shared(file: int, shape: tuple[int, ...]) -> np.ndarray:
    """What two processes see in one file, made as large as that, as an array of uint8."""
    os.truncate(file, math.prod(shape))
    at_once = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # all pages in one go: Linux'
    return np.frombuffer(mmap.mmap(file, math.prod(shape), flags=at_once), np.uint8).reshape(shape)


class Worker:
    """What another process asks for. memory: bytes that this one may allocate, for messages."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._clips: dict[int, Clip] = {}
        self._shared = 0  # bytes of frames that this process maps, which the limit does not count
        self.tired = False  # whether another request shall have another process

    def answer(self, method: str, arguments: tuple[Any, ...], files: list[int]) -> Any:
        """What a method returns, or the error to raise."""
        try:
            return getattr(self, method)(*arguments, *files)
        except Exception as error:
            if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
                self.tired = True
                return MediaError(
                    f"{_name(arguments[0])} needs more than {self._memory / (1 << 20):.4g} MiB to be decoded",
                    "scale it first, or ask for fewer frames",
                )
            return error
        finally:
            for file in files:
                os.close(file)

    def clip(self, name: Path | str, place: int, sampling: Sampling, *files: int) -> tuple[int, int]:
        """Open a clip, from now on known by its place; its size."""
        clip = self._clips[place] = Clip(_media(name, files), sampling)
        return clip.size

    def estimate(self, name: Path | str, place: int, sampling: Sampling) -> int:
        """See `Clip.estimate`."""
        return self._clips[place].estimate(sampling)

    def sample(self, name: Path | str, place: int, sampling: Sampling, most: int | None, file: int) -> Any:
        """The shape of the frames, which are in the file, and all else of the video."""
        clip, before = self._clips[place], self._shared

        def room(shape: tuple[int, ...]) -> np.ndarray:
            frames = shared(file, shape)
            self._shared += frames.nbytes
            return frames

        try:
            # torchcodec would need torch, which takes seconds and hundreds of MiB to import.
            video = sample(clip, sampling, most=most, backend="pyav", room=room)
        except MediaError:
            self._require_room(clip)
            raise
        else:
            if video.warnings:
                self._require_room(clip)
        finally:
            self._shared = before
            self.tired = self.tired or _peak() > max(_UNTIRED, self._memory // 2)  # which the next would be blamed for
        named = {field.name: getattr(video, field.name) for field in fields(Video) if field.init}
        return video.frames.shape, {key: value for key, value in named.items() if key != "frames"}

    def picture(self, name: Path | str, *files: int) -> tuple[int, ...]:
        """The shape of the picture, (H, W, 3), which is in the last file."""
        *source, file = files
        image = np.asarray(read_picture(_media(name, source)))
        shared(file, image.shape)[:] = image
        return image.shape

    def forget(self) -> None:
        """Close all clips."""
        self._clips.clear()

    def _require_room(self, clip: Clip) -> None:
        """Of a clip that shows damage: some of FFmpeg's decoders pass over what they had no memory for as they do over
        damage. Raises MemoryError if the largest block that one asks for may have been refused."""
        width, height = clip.size
        if _peak() - self._shared > self._memory - _LARGEST * width * height:
            raise MemoryError


def _name(name: Path | str) -> str:
    return name.name if isinstance(name, Path) else name


def _media(name: Path | str, files: Sequence[int]) -> Media:
    if isinstance(name, Path):
        return name
    (file,) = files
    return Stored(os.fdopen(os.dup(file), "rb"), name)


def _peak() -> int:
    """The most bytes of addresses that this process had at any time; 0 where that is not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak")), 0)


def _limit(memory: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    # Of its own memory: not of the frames, which are shared and whose number follows from the free memory.
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes, not its parent


def _small_stacks() -> None:
    """FFmpeg's threads, some for each core and each clip, would have 8 MiB each, all of which the limit counts."""
    with suppress(OSError, AttributeError):  # not glibc
        libc, attributes = ctypes.CDLL(None), ctypes.create_string_buffer(256)
        libc.pthread_attr_init(attributes)
        libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(_STACK))
        libc.pthread_setattr_default_np(attributes)


def _end_with(channel: socket.socket) -> None:
    """End when the other end is gone, also in the middle of decoding."""
    poll = select.poll()
    poll.register(channel.fileno(), 0)  # 0: only that it was hung up
    poll.poll()
    os._exit(0)


def main() -> None:
    """Answer until the other end is gone."""
    channel, memory = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    warnings.simplefilter("ignore")  # Pillow's, of large pictures: nobody reads them here
    _limit(memory)
    _small_stacks()
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    worker = Worker(memory)
    while True:
        try:
            (method, arguments), files = receive(channel)
            if method == "forget":
                worker.forget()
            else:  # an answer that is an error holds what was decoded: it is not kept
                send(channel, (_portable(worker.answer(method, arguments, files)), worker.tired))
        except (OSError, EOFError):
            return


def _portable(answer: Any) -> Any:
    """Errors of libraries may not be pickled."""
    known = not isinstance(answer, Exception) or type(answer).__module__ == MediaError.__module__
    return answer if known else RuntimeError(f"{type(answer).__name__}: {answer}")


if __name__ == "__main__":
    main()
