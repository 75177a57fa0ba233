"""Dividing CPU cores between the two processes, so that they do not fight for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def cores() -> int:
    """Cores this process may run on, no more than OMP_THREAD_LIMIT: told to use more threads than that, torch computes
    bfloat16 products wrong."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    return min(count, int(limit)) if limit.isdigit() and int(limit) else count


def shares() -> tuple[int, int]:
    """Threads for (target, draft) while both work at once: a quarter of the cores for the draft, at least one each."""
    draft = max(1, cores() // 4)
    return max(1, cores() - draft), draft


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Inside, torch uses so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_full = _sharers = 0


@contextmanager
def sharing(active: bool) -> Iterator[Callable[[bool], None]]:
    """Yields share(beside), which gives the draft its share of this process's threads or takes it back; on leaving it
    is back. Not `active`, it does nothing. May be open several times at once, closed in any order."""
    global _full, _sharers
    if _sharers == 0:
        _full = torch.get_num_threads()
    _sharers += 1

    def share(beside: bool) -> None:
        wanted = min(_full, shares()[0]) if beside and active else _full
        if torch.get_num_threads() != wanted:
            torch.set_num_threads(wanted)

    try:
        yield share
    finally:
        _sharers -= 1
        share(False)
