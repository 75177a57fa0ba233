"""What the target's process and the draft's process say to each other: token ids and small records, never logits."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hippo.families import VideoGrid


class Begin(NamedTuple):
    """A new request: the draft's inputs, tensors as numpy arrays (see `packed`). It encodes the video at once.
    limit: ids from here on are never proposed."""

    inputs: dict[str, Any]
    limit: int


class Keep(NamedTuple):
    """Which video tokens to keep, by index into those of the target's grids. The draft reads its prompt."""

    kept: list[int]
    grids: tuple[VideoGrid, ...]


class Read(NamedTuple):
    """A new request in place of Begin and Keep, for a draft with the target's eyes. The draft reads its prompt.

    prompt: tensors as numpy arrays, of the prompt's tokens that stay: ids (L,), positions (axes, L), next_position
    (axes,), and of those that the target saw, which they are, at (n,), and their embeddings, rows (n, D). limit: see
    Begin."""

    prompt: dict[str, Any]
    limit: int


class Settle(NamedTuple):
    """The first `stands` generated tokens stand, `tokens` follow; whatever was proposed beyond them is dropped."""

    stands: int
    tokens: list[int]


class Propose(NamedTuple):
    """Propose `number` more tokens after everything proposed so far."""

    number: int


class End(NamedTuple):
    """The request is over; forget it."""


class Loaded(NamedTuple):
    """The draft model is there. vocabulary: rows of its output head; size: bytes of its weights, quantised or
    not; eyes: see `hippo.draft.eyes`."""

    vocabulary: int
    size: int
    eyes: str


class Ready(NamedTuple):
    """The prompt is read. epoch: that in which its request began; seconds: vision tower and prefill; warning: what
    the user should know, empty for nothing."""

    epoch: int
    seconds: float
    warning: str = ""


class Token(NamedTuple):
    """One proposed token. epoch: how many Begin, Read and Settle records the draft had seen; sure: the draft's
    probability of it; seconds: of its forward."""

    epoch: int
    id: int
    sure: float
    seconds: float


class Failed(NamedTuple):
    """The draft's process cannot go on."""

    reason: str


def put(pipe: Connection, message: Any) -> None:
    """Send a record. Plain pickle: Connection.send would hand tensors over through torch's shared memory, which needs
    a server thread here and processes that trust one key."""
    pipe.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def take(pipe: Connection) -> Any:
    """Receive a record, waiting for it."""
    return pickle.loads(pipe.recv_bytes())


def packed(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs with their tensors as numpy arrays, which pickle as one block of bytes; numpy has no bfloat16."""

    def array(value: Tensor) -> Any:
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()

    return {key: array(value) if isinstance(value, Tensor) else value for key, value in inputs.items()}


def unpacked(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What `packed` packed, as tensors on `device`."""
    return {
        key: torch.as_tensor(value).to(device) if hasattr(value, "dtype") else value for key, value in inputs.items()
    }
