"""What can go wrong in a way that the user can act on."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class HippoError(Exception):
    """Base of all errors that users are meant to read: one line with the cause and what to do about it.

    Args:
        cause: what went wrong, without a full stop.
        hint: what the user can do, as an imperative without a full stop; may be empty.
    """

    def __init__(self, cause: str, hint: str = "") -> None:
        self.cause = cause
        self.hint = hint
        super().__init__(f"{cause}: {hint}" if hint else cause)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Exception's own would pass the whole message as the cause."""
        return type(self), (self.cause, self.hint)


class BadRequest(HippoError):
    """An option, a message or a prompt that cannot be served as it is."""


class MediaError(HippoError):
    """A video or an image that cannot be read."""


class CheckpointError(HippoError):
    """A model or a processor that cannot be loaded, or a pair that does not go together."""


class OutOfMemory(HippoError):
    """The device or the machine has too little memory for this."""


class DraftLost(HippoError):
    """The draft died, failed or was silent for too long. During a request the target goes on alone."""


class Busy(HippoError):
    """The models are in use in a way that does not allow another request now."""


def unknown(what: str, name: Any, known: Sequence[str], also: str = "") -> BadRequest:
    """A name that is none of those known, with the nearest of them, or all. also: what else may be given."""
    near = get_close_matches(str(name), known, 1)
    every = ", ".join(known) + (f", or {also}" if also else "")
    return BadRequest(f"unknown {what} {name!r}", f"did you mean {near[0]}?" if near else f"use one of: {every}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is one of the ways in which Python or torch run out of memory."""
    import torch  # not above: a command imports this file before it can be interrupted without a trace

    known = isinstance(error, (MemoryError, torch.OutOfMemoryError, OutOfMemory))
    return known or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn every kind of running out of memory into OutOfMemory."""
    try:
        yield
    except Exception as error:
        if isinstance(error, HippoError) or not is_out_of_memory(error):
            raise
        reason = error
    else:
        return
    gc.collect()
    raise OutOfMemory(
        f"not enough memory ({str(reason).splitlines()[0] if str(reason) else type(reason).__name__})",
        "use fewer --frames, a smaller checkpoint or another --device",
    ) from None
