"""Fused forwards recorded as CUDA graphs and replayed without Python between their operations.

A recorded forward reads and writes the same memory each time. The KV cache is one room that later requests reuse, a
forward's width is rounded up to one of WIDTHS, and attention covers the whole room under a mask. Token ids and the
cache's length are written into fixed tensors before each replay. Draft steps are recorded RUN at a time; each step
takes the likeliest token of the one before. A model whose recording fails once goes on unrecorded.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from hippo import state
from hippo.device import free_memory
from hippo.forward.fused import FusedDecoder, fused, why_not_fused
from hippo.forward.kv_cache import FixedWindow, Room
from hippo.forward.likeliest import Repetition, likeliest

WIDTHS = (1, 2, 4, 8, 16, 32)  # tokens per recorded forward; other counts are padded
RUN = 4  # draft steps recorded at a time
_LONGEST = 4096 + WIDTHS[-1]  # tokens of an answer
_LEAST = 2048  # tokens of a room, at least
_LOOSE = 1.5  # a request uses a room of up to so many times the tokens it needs, since all of it is attended to
_IDLE = 0.1  # share of the free memory that rooms of no request may hold

# A process can record one graph at a time, and to begin one synchronises the device and frees memory, which would break
# another thread's.
_recording = threading.Lock()


_KEPT = "recording-failed"  # on disk, for `hippo doctor`


class NotRecorded(Exception):
    """Why a forward could not be recorded; str() is a short clause."""


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
        self.room = Room(decoder.layers, spare=0, clear=True)
        self.room.expected = capacity
        self._forwards: dict[tuple[int, int, bool], Callable[[], tuple[Tensor, ...]]] = {}
        self._repetition: Repetition | None = None  # at a fixed address
        self._tensor: Tensor | None = None  # of the room, when forwards were recorded
        self._place: Any = None  # the memory and the stream of all graphs: only one of them runs at a time
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
        self.room.clear()

    @property
    def capacity(self) -> int:
        """Tokens that the room holds."""
        return self.room.expected if self.room.tensor is None else self.room.tensor.shape[-2]

    def holds(self, length: int, count: int) -> bool:
        """Whether a forward over `count` tokens after `length` others can be a recorded one. If they do not fit the
        room, the next unrecorded forward makes it larger."""
        if count > WIDTHS[-1] or self._decoder.unrecorded:
            return False
        end = length + _width(count)
        if end > self.capacity:
            self.room.expected = room_size(end + 1)
        return end <= self.capacity and end - self._begins <= _LONGEST

    def extend(self, ids: Sequence[int], length: int) -> Tensor:
        """(n, vocabulary) logits of n ids after `length` tokens. They are overwritten by the next forward. Raises
        NotRecorded, here and in `draft`, before anything has changed."""
        (logits,) = self._run(ids, length, _width(len(ids)), 0)
        return logits[: len(ids)]

    def draft(
        self, token: int, length: int, limit: int, repetition: Repetition | None = None
    ) -> tuple[list[int], list[float]]:
        """The RUN likeliest tokens, one after the other, after `token` behind `length` others, and their probabilities.
        limit: only ids below it are taken. repetition: of the text up to `token`."""
        if repetition is not None:
            if self._repetition is None or len(self._repetition.seen) != limit:
                self._repetition = Repetition(*(tensor.clone() for tensor in repetition))
                self._forwards = {known: run for known, run in self._forwards.items() if not known[2]}
            for kept, new in zip(self._repetition, repetition, strict=True):
                kept.copy_(new)
        ids, probs = self._run([token], length, RUN, limit, repetition is not None)
        return ids.tolist(), probs.tolist()

    def _run(
        self, ids: Sequence[int], length: int, width: int, limit: int, penalised: bool = False
    ) -> tuple[Tensor, ...]:
        if self._tensor is not self.room.tensor:  # it has grown and moved
            self._forwards.clear()
            self._tensor = self.room.tensor
        self._ids[: len(ids)] = torch.tensor(ids)
        self._length.fill_(length)
        known, began = (width, limit, penalised), time.perf_counter()
        try:
            if known not in self._forwards:
                work = (lambda: self._drafting(limit, penalised)) if limit else (lambda: self._extending(width))
                self._forwards[known] = self._recorded(work)
        finally:
            self.recording = time.perf_counter() - began
        return self._forwards[known]()

    def _recorded(self, work: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
        if self._decoder.unrecorded:
            raise NotRecorded(self._decoder.unrecorded)
        with _recording:
            try:
                run, self._place = record(work, self._ids.device, self._place)
            except RuntimeError as error:  # of CUDA, of its allocator, or memory that is short
                self._decoder.unrecorded = reason = _line(error)
                state.write(_KEPT, {}, {"day": time.strftime("%Y-%m-%d"), "reason": reason})
                raise NotRecorded(reason) from None
        return run

    def _extending(self, width: int) -> tuple[Tensor]:
        return (self._logits(self._ids[:width], self._length + torch.arange(width, device=self._ids.device)),)

    def _drafting(self, limit: int, penalised: bool) -> tuple[Tensor, Tensor]:
        token, at = self._ids[:1], self._length
        repetition = self._repetition if penalised else None
        ids, probs = [], []
        for _ in range(RUN):
            token, prob = likeliest(self._logits(token, at), limit, repetition)
            repetition = repetition and repetition.followed_by(token)
            probs.append(prob)
            ids.append(token)
            at = at + 1
        return torch.cat(ids), torch.cat(probs)

    def _logits(self, ids: Tensor, at: Tensor) -> Tensor:
        """(n, vocabulary) logits of ids (n,) at cache positions `at` (n,)."""
        assert self._tensor is not None
        answered = at - self._first
        rotary = self._cos[answered], self._sin[answered]
        window = FixedWindow(self._tensor, at)
        return self._head(self._decoder.forward_in(self._lookup(ids), rotary, (window, len(ids))))


def record(
    work: Callable[[], tuple[Tensor, ...]], device: torch.device, place: Any = None
) -> tuple[Callable[[], tuple[Tensor, ...]], Any]:
    """`work` recorded as a CUDA graph, and its place: a memory pool and a stream, for other graphs that never run at
    the same time. It must read and write tensors whose addresses do not change. Raises RuntimeError."""
    stream = torch.cuda.current_stream(device)
    pool, beside = place or (
        torch.cuda.graph_pool_handle(),
        torch.cuda.Stream(device, priority=stream.priority),  # the graph's priority
    )
    beside.wait_stream(stream)
    with torch.cuda.stream(beside):
        work()  # allocates the libraries' workspaces, which must not be recorded
    stream.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: the other model may use this GPU from its own thread meanwhile. torch.cuda.graph leaves its
        # stream current if its end fails, so the outer context gives it back.
        with torch.cuda.stream(beside), torch.cuda.graph(graph, pool, beside, capture_error_mode="thread_local"):
            results = work()
    except BaseException:
        with suppress(Exception):  # else all memory freed from now on would wait for the end of this recording
            torch._C._cuda_endAllocateToPool(device.index or 0, pool)
        raise

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay, (pool, beside)


def why_not_recorded(language_model: nn.Module) -> str:
    """Why the short forwards of a text model are not recorded; empty if they are, as far as is known."""
    device = next(language_model.parameters()).device
    if not records(device):
        return f"a {device.type} has no CUDA graphs"
    decoder = fused(language_model)
    return why_not_fused(language_model) if decoder is None else decoder.unrecorded


def why_no_graphs(device: torch.device) -> str:
    """Why nothing can be recorded on a device, found out by recording a sum; empty if something can."""
    if not records(device):
        return f"a {device.type} has no CUDA graphs"
    try:
        x = torch.zeros(1, device=device)
        with _recording:
            run, _ = record(lambda: (x + 1,), device)
        x.fill_(1)
        return "" if run()[0].item() == 2 else "what was recorded gives another result"
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
        return _line(error)


def last_failure() -> str:
    """When and why recording last failed on this machine, with these versions; empty if it never did."""
    kept = state.read(_KEPT, {})
    return f"{kept['day']}: {kept['reason']}" if isinstance(kept, dict) and {"day", "reason"} <= kept.keys() else ""


def _line(error: Exception) -> str:
    return f"recording failed ({type(error).__name__}: {' '.join(str(error).split())[:160]})"


def _width(count: int) -> int:
    return next(width for width in WIDTHS if width >= count)


def room_size(tokens: int) -> int:
    """Tokens of a room for so many or up to a quarter less: few sizes, so that the next request can often reuse one."""
    step = 1 << max(0, tokens.bit_length() - 3)
    return max(_LEAST, -(-tokens // step) * step)


def recorded_for(user: Any, decoder: FusedDecoder, lookup: nn.Module, head: nn.Module, tokens: int) -> Recorded:
    """Recorded forwards with room for `tokens` tokens, reserved while `user` is alive. Later requests reuse them:
    recording takes longer than many answers. Those that no request has used for longest are freed where memory is
    short."""
    capacity, idle = room_size(tokens), list[Recorded]()  # the latest used first
    with suppress(IndexError):
        while True:
            idle.append(decoder.idle.pop())  # atomic: two threads never get the same
    fitting = [one for one in idle if capacity <= one.capacity <= _LOOSE * capacity]
    taken = min(fitting, key=lambda one: one.capacity, default=None)
    held, most = 0, _IDLE * free_memory(next(head.parameters()).device)
    kept = [one for one in idle if one is not taken and (held := held + one.room.size) <= most]
    decoder.idle += reversed(kept)
    if taken is None:
        taken = Recorded(decoder, lookup, head, capacity)
    weakref.finalize(user, decoder.idle.append, taken)
    return taken
