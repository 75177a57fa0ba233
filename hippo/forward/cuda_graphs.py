"""Fused forwards recorded as CUDA graphs and replayed without Python between their operations.

A recorded forward reads and writes the same memory each time. The KV cache is one room that later requests reuse, a
forward's width is rounded up to one of WIDTHS, and attention covers the whole room under a mask. Token ids and the
cache's length are written into fixed tensors before each replay. Draft steps are recorded RUN at a time; each step
takes the likeliest token of the one before.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from hippo.forward.fused import FusedDecoder
from hippo.forward.kv_cache import FixedWindow, Room

WIDTHS = (1, 2, 4, 8, 16, 32)  # tokens per recorded forward; other counts are padded
RUN = 4  # draft steps recorded at a time
_LONGEST = 4096 + WIDTHS[-1]  # tokens of an answer
_STEP = 1024  # tokens; room sizes are multiples of it, so that the next request can often reuse one


def records(device: torch.device) -> bool:
    """Whether forwards on this device are recorded."""
    return device.type == "cuda"


class Recorded:
    """The recorded forwards of one model over one room, for one request at a time.

    decoder: the model's fused form. lookup: ids -> embeddings; head: hidden states -> logits. capacity: tokens that the
    room holds.
    """

    def __init__(self, decoder: FusedDecoder, lookup: nn.Module, head: nn.Module, capacity: int) -> None:
        self._decoder, self._lookup, self._head = decoder, lookup, head
        # Zeros: a NaN in uninitialised memory stays one under the mask.
        self.room = Room(decoder.layers, spare=0, clear=True)
        self.room.expected = capacity
        self._forwards: dict[tuple[int, int], Callable[[], tuple[Tensor, ...]]] = {}
        self._tensor: Tensor | None = None  # of the room, when forwards were recorded
        self.recording = 0.0  # seconds that the last forward spent on recording
        self._ids = self._length = self._first = self._cos = self._sin = torch.empty(0)

    def begin(self, first: int, next_position: Tensor) -> None:
        """A new request: its prompt has `first` tokens; next_position: (axes,), of the first token of its answer."""
        places = torch.arange(_LONGEST, device=next_position.device)
        cos, sin = self._decoder.rotary(next_position[:, None] + places)
        if not len(self._ids):
            self._ids = places.new_zeros(WIDTHS[-1])
            self._length, self._first = places.new_zeros(1), places.new_zeros(1)
            self._cos, self._sin = cos.clone(), sin.clone()
        self._cos.copy_(cos)
        self._sin.copy_(sin)
        self._first.fill_(first)
        self._begins = first

    @property
    def capacity(self) -> int:
        """Tokens that the room holds."""
        return self.room.expected if self.room.tensor is None else self.room.tensor.shape[-2]

    def holds(self, length: int, count: int) -> bool:
        """Whether a forward over `count` tokens after `length` others can be a recorded one. If they do not fit the
        room, the next unrecorded forward makes it larger."""
        if count > WIDTHS[-1]:
            return False
        end = length + _width(count)
        if end > self.capacity:
            self.room.expected = end + _STEP
        return end <= self.capacity and end - self._begins <= _LONGEST

    def extend(self, ids: Sequence[int], length: int) -> Tensor:
        """(n, vocabulary) logits of n ids after `length` tokens. They are overwritten by the next forward."""
        (logits,) = self._run(ids, length, _width(len(ids)), 0)
        return logits[: len(ids)]

    def draft(self, token: int, length: int, limit: int) -> tuple[list[int], list[float]]:
        """The RUN likeliest tokens, one after the other, after `token` behind `length` others, and their probabilities.
        limit: only ids below it are taken."""
        ids, probs = self._run([token], length, RUN, limit)
        return ids.tolist(), probs.tolist()

    def _run(self, ids: Sequence[int], length: int, width: int, limit: int) -> tuple[Tensor, ...]:
        if self._tensor is not self.room.tensor:  # it has grown and moved
            self._forwards.clear()
            self._tensor = self.room.tensor
        self._ids[: len(ids)] = torch.tensor(ids)
        self._length.fill_(length)
        known, began = (width, limit), time.perf_counter()
        if known not in self._forwards:
            work = (lambda: self._drafting(limit)) if limit else (lambda: self._extending(width))
            self._forwards[known] = recorded(work, self._ids.device)
        self.recording = time.perf_counter() - began
        return self._forwards[known]()

    def _extending(self, width: int) -> tuple[Tensor]:
        return (self._logits(self._ids[:width], self._length + torch.arange(width, device=self._ids.device)),)

    def _drafting(self, limit: int) -> tuple[Tensor, Tensor]:
        token, at = self._ids[:1], self._length
        ids, probs = [], []
        for _ in range(RUN):
            best = self._logits(token, at)[:, :limit].float().softmax(-1).max(-1)
            probs.append(best.values)
            ids.append(best.indices)
            token, at = best.indices, at + 1
        return torch.cat(ids), torch.cat(probs)

    def _logits(self, ids: Tensor, at: Tensor) -> Tensor:
        """(n, vocabulary) logits of ids (n,) at cache positions `at` (n,)."""
        assert self._tensor is not None
        answered = at - self._first
        rotary = self._cos[answered], self._sin[answered]
        window = FixedWindow(self._tensor, at)
        return self._head(self._decoder.forward_in(self._lookup(ids), rotary, (window, len(ids))))


def recorded(work: Callable[[], tuple[Tensor, ...]], device: torch.device) -> Callable[[], tuple[Tensor, ...]]:
    """`work` recorded as a CUDA graph; on other devices `work` itself. It must read and write tensors whose addresses
    do not change."""
    if device.type != "cuda":
        return work
    # The first run allocates the libraries' workspaces, which must not be recorded.
    stream = torch.cuda.current_stream(device)
    beside = torch.cuda.Stream(device, priority=stream.priority)  # the graph's priority
    beside.wait_stream(stream)
    with torch.cuda.stream(beside):
        work()
    stream.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # thread_local: the other model may use this GPU from its own thread meanwhile.
    with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
        results = work()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay


def _width(count: int) -> int:
    return next(width for width in WIDTHS if width >= count)


def recorded_for(user: Any, decoder: FusedDecoder, lookup: nn.Module, head: nn.Module, tokens: int) -> Recorded:
    """Recorded forwards with room for `tokens` tokens, reserved while `user` is alive. The next request reuses them:
    recording takes longer than many answers."""
    capacity = -(-tokens // _STEP) * _STEP
    fitting: list[Recorded] = []
    with suppress(IndexError):
        while True:  # rooms of other sizes are freed, since they are large
            one = decoder.idle.pop()  # atomic: two threads never get the same
            fitting += [one] if one.capacity == capacity else []
    taken = fitting[0] if fitting else Recorded(decoder, lookup, head, capacity)
    weakref.finalize(user, decoder.idle.append, taken)
    return taken
