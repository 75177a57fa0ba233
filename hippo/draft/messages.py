"""The records that target and draft exchange: token ids and small facts, never logits. `request` is a request's id.

This module imports no torch, so that a fresh process can send its first heartbeats at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from hippo.families import VideoGrid

_HEARTBEAT = 0.1  # seconds
ANSWER = 256  # tokens of an answer whose length nobody has limited


class Begin(NamedTuple):
    """A new request with its processor's output, batch of one. The draft encodes the video at once. Ids from `limit` on
    are never proposed. penalty: for repetition, which the target's choice is made with; 1 is none. answer: tokens that
    the answer has at most."""

    request: int
    inputs: dict[str, Any]
    limit: int
    penalty: float = 1.0
    answer: int = ANSWER


class Prefill(NamedTuple):
    """Read the prompt with these video tokens. kept: (K,) indices into the tokens of the target's grids."""

    request: int
    kept: Tensor
    grids: tuple[VideoGrid, ...]


class ReadPrompt(NamedTuple):
    """A new request in place of Begin and Prefill, for a draft that shares the target's vision tower. prompt: see
    `hippo.draft.shared_vision.kept_prompt`. limit, penalty, answer: see Begin."""

    request: int
    prompt: dict[str, Tensor]
    limit: int
    penalty: float = 1.0
    answer: int = ANSWER


class Commit(NamedTuple):
    """The first `length` generated tokens are kept, `tokens` follow. Everything else proposed is dropped."""

    request: int
    length: int
    tokens: list[int]


class Propose(NamedTuple):
    """Propose `number` more tokens after everything proposed so far."""

    request: int
    number: int


class End(NamedTuple):
    """The request is over."""

    request: int


class Loading(NamedTuple):
    """The heartbeat of a worker that loads its model."""


class Loaded(NamedTuple):
    """The model is loaded. vocabulary: rows of its output head. size: bytes of its weights. vision: fingerprint of its
    vision tower, see `hippo.draft.shared_vision`. token_size: bytes of a token in its KV cache."""

    vocabulary: int
    size: int
    vision: str
    token_size: int = 0


class Ready(NamedTuple):
    """The prompt is read. seconds: vision tower and prefill. warning: what the user should know; may be empty. began,
    ended: of the prefill, by time.perf_counter, which all processes of a machine share. tokens: of the prompt."""

    request: int
    seconds: float
    warning: str
    began: float = 0.0
    ended: float = 0.0
    tokens: int = 0


class Token(NamedTuple):
    """A proposed token. epoch: Commit records that the worker had seen for this request. prob: the draft's probability
    of it. seconds: of its forward. ended: by time.perf_counter."""

    request: int
    epoch: int
    id: int
    prob: float
    seconds: float
    ended: float = 0.0


class NoMore(NamedTuple):
    """Fewer tokens were proposed than was asked for, and no more come before the next Commit. epoch: as in Token.
    seconds: what it took to find none, 0 if there were some."""

    request: int
    epoch: int
    seconds: float


class Failed(NamedTuple):
    """The draft gives up a request, or everything if `request` is 0."""

    request: int
    reason: str


@contextmanager
def heartbeat(send: Callable[[Loading], None]) -> Iterator[None]:
    """Inside, a thread sends Loading records, so that a slow load differs from a stopped process. Nothing else may be
    sent meanwhile. An OSError ends the thread."""
    done = threading.Event()

    def beat() -> None:
        with suppress(OSError):
            send(Loading())
            while not done.wait(_HEARTBEAT):
                send(Loading())

    thread = threading.Thread(target=beat, name="hippo-draft-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
