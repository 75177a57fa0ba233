"""Fused forwards recorded as CUDA graphs and replayed without Python between their operations.

A recorded forward reads and writes the same memory each time. The KV cache is one room that later requests reuse, a
forward's width is rounded up to one of a few, and attention covers the whole room under a mask. Token ids, the cache's
length and all that a draft's choice depends on are written into fixed tensors before each replay. Draft steps are
recorded RUN at a time; each step takes the likeliest token of the one before.

`prepare` records at load what requests will use. A room of another size is recorded when its first request begins, and
at load the next time. A model whose recording fails once goes on unrecorded. HIPPO_GRAPHS=0 in the environment records
nothing, HIPPO_GRAPHS=late nothing at load.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
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
DRAFTING = (0, 1, 4, 32)  # what a draft records: 0 is a run, the others read what the target committed
_LEAST = 2048  # tokens of a room, at least
_LOOSE = 1.5  # a request uses a room of up to so many times the tokens it needs, since all of it is attended to
_IDLE = 0.1  # share of the free memory that rooms of no request may hold
_SEEN = 3  # latest sizes of rooms that are recorded at load

_WHEN = os.environ.get("HIPPO_GRAPHS", "")

# A process can record one graph at a time, and to begin one synchronises the device and frees memory, which would break
# another thread's.
_recording = threading.Lock()

_KEPT, _SIZES = "recording-failed", "rooms"  # on disk: for `hippo doctor`, and for `prepare`

_Forward = Callable[[], tuple[Tensor, ...]]


def records(device: torch.device) -> bool:
    """Whether forwards on this device are recorded."""
    return device.type == "cuda" and _WHEN != "0"


class Recorded:
    """The recorded forwards of one model over one room, for one request at a time. Where recording fails the same
    operations run one by one.

    decoder: the model's fused form. lookup: ids -> embeddings; head: hidden states -> logits. capacity: tokens that the
    room holds.
    """

    def __init__(self, decoder: FusedDecoder, lookup: nn.Module, head: Any, capacity: int) -> None:
        self._decoder, self._lookup, self._head = decoder, lookup, head
        self.room = Room(decoder.layers, spare=0, clear=True)
        self.room.expected = capacity
        self._forwards: dict[int, _Forward] = {}  # by width; 0 is a run of draft steps
        self._place: Any = None  # the memory and the stream of all graphs: only one of them runs at a time
        self._widths: tuple[int, ...] = WIDTHS
        self.recording = 0.0  # seconds that the last forward spent on recording
        device = decoder.keys.device
        self._ids = torch.zeros(WIDTHS[-1], dtype=torch.long, device=device)
        self._length, self._first, self._limit = torch.zeros(3, 1, dtype=torch.long, device=device)
        self._repetition = Repetition(
            torch.zeros(head.out_features, dtype=torch.bool, device=device), torch.ones((), device=device)
        )
        self._tensor = self._cos = self._sin = torch.empty(0)  # of the room that forwards were recorded over

    def begin(self, first: int, next_position: Tensor, widths: tuple[int, ...]) -> None:
        """A new request, of whose forwards those that are not yet recorded now are: its prompt has `first` tokens;
        next_position: (axes,), of the first token of its answer; widths: of its forwards, 0 for runs of draft steps."""
        self._next, self._widths = next_position, widths
        self._first.fill_(first)
        self._length.fill_(first)
        self._fit(1)
        for kept, new in zip((self._cos, self._sin), self._rotary(), strict=True):
            kept.copy_(new)
        for width in widths:
            self._forward(width)
        self.room.clear()

    @property
    def capacity(self) -> int:
        """Tokens that the room holds."""
        return self.room.expected if self.room.tensor is None else self.room.tensor.shape[-2]

    def takes(self, count: int) -> bool:
        """Whether a forward over `count` tokens can be a recorded one."""
        return count <= self._widths[-1]

    def extend(self, ids: Sequence[int], length: int) -> Tensor:
        """(n, vocabulary) logits of n ids after `length` tokens. They are overwritten by the next forward."""
        width = next(width for width in self._widths if width >= len(ids))
        (logits,) = self._run(ids, length, width)
        return logits[: len(ids)]

    def draft(
        self, token: int, length: int, limit: int, repetition: Repetition | None = None
    ) -> tuple[list[int], list[float]]:
        """The RUN likeliest tokens, one after the other, after `token` behind `length` others, and their probabilities.
        limit: only ids below it are taken. repetition: of the text up to `token`."""
        self._limit.fill_(limit)
        seen, penalty = self._repetition
        if repetition is None:
            penalty.fill_(1)
        else:
            seen.copy_(repetition.seen)
            penalty.copy_(repetition.penalty)
        ids, probs = self._run([token], length, 0)
        return ids.tolist(), probs.tolist()

    def _run(self, ids: Sequence[int], length: int, width: int) -> tuple[Tensor, ...]:
        began = time.perf_counter()
        self._fit(length + (width or RUN))
        self._ids[: len(ids)] = torch.tensor(ids)
        self._length.fill_(length)
        forward = self._forward(width)
        self.recording = time.perf_counter() - began if self._grown else 0.0
        return forward()

    def _fit(self, end: int) -> None:
        """Make room for `end` tokens. What was recorded over a room that was too small, and has moved, is void."""
        if end > self.capacity:  # an answer longer than was expected
            self.room.expected = room_size(end + 1)
        room = self.room.holding(end, self._decoder.keys)
        self._grown = self._tensor is not room
        if self._grown:
            self._tensor = room
            self._forwards.clear()
            self._cos, self._sin = (table.clone() for table in self._rotary())

    def _rotary(self) -> tuple[Tensor, Tensor]:
        """Of all tokens that an answer may have."""
        return self._decoder.rotary(self._next[:, None] + torch.arange(self.capacity, device=self._next.device))

    def _forward(self, width: int) -> _Forward:
        if width not in self._forwards:
            self._forwards[width] = self._recorded(partial(self._extending, width) if width else self._drafting)
        return self._forwards[width]

    def _recorded(self, work: _Forward) -> _Forward:
        """`work` as a CUDA graph, or as it is."""
        with _recording:
            if self._decoder.unrecorded:
                return work
            try:
                run, self._place = record(work, self._ids.device, self._place)
            except RuntimeError as error:  # of CUDA, of its allocator, or memory that is short
                self._decoder.unrecorded = reason = _line(error)
                state.write(_KEPT, {}, {"day": time.strftime("%Y-%m-%d"), "reason": reason})
                return work
        return run

    def _extending(self, width: int) -> tuple[Tensor]:
        return (self._logits(self._ids[:width], self._length + torch.arange(width, device=self._ids.device)),)

    def _drafting(self) -> tuple[Tensor, Tensor]:
        token, at, repetition = self._ids[:1], self._length, self._repetition
        ids, probs = [], []
        for _ in range(RUN):
            token, prob = likeliest(self._logits(token, at), self._limit, repetition)
            repetition = repetition.followed_by(token)
            probs.append(prob)
            ids.append(token)
            at = at + 1
        return torch.cat(ids), torch.cat(probs)

    def _logits(self, ids: Tensor, at: Tensor) -> Tensor:
        """(n, vocabulary) logits of ids (n,) at cache positions `at` (n,)."""
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
        return _no_graphs(device)
    decoder = fused(language_model)
    return why_not_fused(language_model) if decoder is None else decoder.unrecorded


def why_no_graphs(device: torch.device) -> str:
    """Why nothing can be recorded on a device, found out by recording a sum; empty if something can."""
    if not records(device):
        return _no_graphs(device)
    try:
        x = torch.zeros(1, device=device)
        with _recording:
            run, _ = record(lambda: (x + 1,), device)
        x.fill_(1)
        return "" if run()[0].item() == 2 else "what was recorded gives another result"
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
        return _line(error)


def _no_graphs(device: torch.device) -> str:
    return "HIPPO_GRAPHS is 0" if device.type == "cuda" else f"a {device.type} has no CUDA graphs"


def last_failure() -> str:
    """When and why recording last failed on this machine, with these versions; empty if it never did."""
    kept = state.read(_KEPT, {})
    return f"{kept['day']}: {kept['reason']}" if isinstance(kept, dict) and {"day", "reason"} <= kept.keys() else ""


def _line(error: Exception) -> str:
    return f"recording failed ({type(error).__name__}: {' '.join(str(error).split())[:160]})"


def room_size(tokens: int) -> int:
    """Tokens of a room for so many or up to a quarter less: few sizes, so that the next request can often reuse one."""
    step = 1 << max(0, tokens.bit_length() - 3)
    return max(_LEAST, -(-tokens // step) * step)


def recorded_for(
    user: Any, decoder: FusedDecoder, lookup: nn.Module, head: Any, tokens: int, exact: bool = False
) -> Recorded:
    """Recorded forwards with room for `tokens` tokens, reserved while `user` is alive. Later requests reuse them:
    recording takes longer than many answers. Those that no request has used for longest are freed where memory is
    short. exact: the room's size may not depend on what other requests have left."""
    capacity, idle = room_size(tokens), list[Recorded]()  # the latest used first
    with suppress(IndexError):
        while True:
            idle.append(decoder.idle.pop())  # atomic: two threads never get the same
    most = capacity if exact else _LOOSE * capacity
    fitting = [one for one in idle if capacity <= one.capacity <= most]
    taken = min(fitting, key=lambda one: one.capacity, default=None)
    held, most = 0, _IDLE * free_memory(decoder.keys.device)
    kept = [one for one in idle if one is not taken and (held := held + one.room.size) <= most]
    decoder.idle += reversed(kept)
    if taken is None:
        taken = Recorded(decoder, lookup, head, capacity)
        _remember(decoder, capacity)
    weakref.finalize(user, decoder.idle.append, taken)
    return taken


@torch.inference_mode()
def prepare(decoder: FusedDecoder, lookup: nn.Module, head: Any, widths: tuple[int, ...]) -> None:
    """Record forwards of these widths over the smallest room and those that were needed last, while nothing else runs:
    a request then records nothing. Rooms take a small share of the free memory at most."""
    if decoder.prepared or _WHEN == "late":
        return
    decoder.prepared = True
    token = 2 * decoder.layers * decoder.keys.shape[1] * decoder.keys.shape[3] * decoder.keys.itemsize
    left = _IDLE * free_memory(decoder.keys.device) / token
    nowhere = torch.zeros(decoder.axes, dtype=torch.long, device=decoder.keys.device)
    for capacity in dict.fromkeys([*_sizes(decoder), _LEAST]):
        if capacity <= left and not decoder.unrecorded:
            left -= capacity
            one = Recorded(decoder, lookup, head, capacity)
            one.begin(0, nowhere, widths)
            decoder.idle.insert(0, one)  # the size that was needed last is the last to be freed


def _remember(decoder: FusedDecoder, capacity: int) -> None:
    """Keep on disk that a room of this size was needed."""
    if capacity > _LEAST:
        sizes = dict.fromkeys([capacity, *_sizes(decoder)])
        state.write(_SIZES, _layout(decoder), list(sizes)[:_SEEN])


def _sizes(decoder: FusedDecoder) -> list[int]:
    kept = state.read(_SIZES, _layout(decoder))
    kept = kept if isinstance(kept, list) and all(isinstance(size, int) for size in kept) else []
    return [size for size in kept if size == room_size(size)]


def _layout(decoder: FusedDecoder) -> dict[str, Any]:
    """What tells models apart for which the same sizes are needed."""
    return {"layers": decoder.layers, "keys": list(decoder.keys.shape), "dtype": str(decoder.keys.dtype)}
