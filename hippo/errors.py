"""The one exception that a user is meant to read, and the one that has many names."""


class HippoError(Exception):
    """A failure the user can mend: one line naming the cause and what to do about it.

    Args:
        cause: what went wrong, without a full stop.
        mend: what the user can do, as an imperative without a full stop; may be empty.
    """

    def __init__(self, cause: str, mend: str = "") -> None:
        self.cause = cause
        self.mend = mend
        super().__init__(f"{cause}: {mend}" if mend else cause)


def out_of_memory(error: Exception) -> bool:
    """Whether this is one of the ways to run out of memory."""
    import torch  # not above: a command imports this file before it can be interrupted without a trace

    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return known or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
