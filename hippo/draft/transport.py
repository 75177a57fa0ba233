"""How records travel between target and draft: through a socket to a process, or through queues to a thread."""

from __future__ import annotations

import pickle
import queue
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from torch import Tensor

_BUFFER = 4 << 20  # bytes of a socket


class Transport(Protocol):
    """One end of a two-way pipe of records. Every call raises ConnectionError if this end is closed, or the other end
    is and everything it sent has been received."""

    def send(self, record: Any) -> None:
        """Send a record (a NamedTuple)."""

    def receive(self, timeout: float | None) -> Any | None:
        """The next record, or None if there is none after `timeout` seconds. 0 does not wait, None waits for ever."""

    def close(self) -> None:
        """Close this end. May be called again, and from another thread."""


class ProcessTransport:
    """Records as plain pickles, their tensors as numpy arrays, which are one block of bytes. `Connection.send` would
    hand tensors over in torch's shared memory, which needs a server thread here."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def pair(cls, timeout: float) -> tuple[ProcessTransport, socket.socket]:
        """This process's end, and a socket for the other's. A send fails after `timeout` seconds: it never blocks for
        ever on a stopped process."""
        ours, theirs = socket.socketpair()
        limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        return cls(Connection(ours.detach())), theirs

    def send(self, record: Any) -> None:
        """See Transport."""
        data = pickle.dumps(record._make(map(packed, record)), protocol=pickle.HIGHEST_PROTOCOL)
        with _connected():
            self._connection.send_bytes(data)

    def receive(self, timeout: float | None) -> Any | None:
        """See Transport."""
        with _connected():
            if timeout is not None and not self._connection.poll(timeout):
                return None
            record = pickle.loads(self._connection.recv_bytes())
        return record._make(map(unpacked, record))

    def close(self) -> None:
        """See Transport."""
        self._connection.close()


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:
        raise ConnectionError(type(error).__name__) from None


def packed(value: Any) -> Any:
    """A tensor as a numpy array, also in a dict. numpy has no bfloat16: such a tensor arrives as float32."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return {key: packed(part) for key, part in value.items()} if isinstance(value, dict) else value


def unpacked(value: Any) -> Any:
    """What `packed` packed, as tensors on the CPU."""
    if hasattr(value, "dtype"):
        return torch.as_tensor(value)
    return {key: unpacked(part) for key, part in value.items()} if isinstance(value, dict) else value


class ThreadTransport:
    """Records as they are, the same objects. A tensor on a GPU can be used by the receiver's stream at once: that
    stream waits for the sender's."""

    def __init__(self, inbox: queue.SimpleQueue[Any], outbox: queue.SimpleQueue[Any], closed: threading.Event) -> None:
        self._inbox, self._outbox, self._closed = inbox, outbox, closed

    @classmethod
    def pair(cls) -> tuple[ThreadTransport, ThreadTransport]:
        """Both ends."""
        there, back, closed = queue.SimpleQueue[Any](), queue.SimpleQueue[Any](), threading.Event()
        return cls(back, there, closed), cls(there, back, closed)

    def send(self, record: Any) -> None:
        """See Transport."""
        if self._closed.is_set():
            raise ConnectionError("closed")
        made = [(tensor, torch.cuda.current_stream(tensor.device).record_event()) for tensor in _on_gpu(record)]
        self._outbox.put((record, made))

    def receive(self, timeout: float | None) -> Any | None:
        """See Transport."""
        try:
            arrived = self._inbox.get(timeout != 0, timeout)
        except queue.Empty:
            return None
        if arrived is None:
            self._inbox.put(None)  # for the next call
            raise ConnectionError("closed")
        record, made = arrived
        for tensor, event in made:
            stream = torch.cuda.current_stream(tensor.device)
            stream.wait_event(event)
            tensor.record_stream(stream)  # its memory is not used again before this stream is done with it
        return record

    def close(self) -> None:
        """See Transport."""
        self._closed.set()
        for end in (self._outbox, self._inbox):  # None wakes those who wait
            end.put(None)


def _on_gpu(record: Any) -> list[Tensor]:
    values = [part for value in record for part in (value.values() if isinstance(value, dict) else (value,))]
    return [value for value in values if isinstance(value, Tensor) and value.is_cuda]
