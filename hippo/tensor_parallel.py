"""Several processes that torchrun has started, each holding a part of the target: tensor parallel, as transformers does
it. All of them run the same request. The first one alone has the draft, talks to the user, and broadcasts to the
others what the draft proposed and whatever else could make them differ. Our choice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line asks for the rank before it takes the time to import torch
    from torch import Tensor


def world_size() -> int:
    """Processes that hold the target together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_leader() -> bool:
    """Whether this is the first process, or the only one."""
    return world_size() == 1 or os.environ.get("RANK") == "0"


def local_device() -> str:
    """The device that this process is to use."""
    import torch

    return f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"


def broadcast(value: Any) -> Any:
    """The leader's value, everywhere."""
    values = [value]
    if world_size() > 1:
        from torch import distributed

        distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_min(number: int) -> int:
    """The least of all processes' numbers."""
    numbers = [number] * world_size()
    if world_size() > 1:
        from torch import distributed

        distributed.all_gather_object(numbers, number)
    return min(numbers)


def all_mean(values: Tensor) -> Tensor:
    """The mean of all processes' tensors of one shape."""
    if world_size() > 1:
        from torch import distributed

        distributed.all_reduce(values := values.clone())
    return values / world_size()


def shutdown() -> None:
    """Take leave of the others; a process that ends without it may crash while its connections are being closed."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
