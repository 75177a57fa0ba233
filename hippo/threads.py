"""Dividing CPU cores between the two processes, so that they do not fight for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shares() -> tuple[int, int]:
    """Threads for (target, draft) while both work at once: a quarter of the cores for the draft, at least one each."""
    draft = max(1, cores() // 4)
    return max(1, cores() - draft), draft


@contextmanager
def threads(count: int) -> Iterator[None]:
    """This process computes with `count` threads while open."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
