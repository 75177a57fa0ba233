"""Devices: wall time that waits for them, their free memory, and how many CPU threads each model uses."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from hippo.system import available_memory

Result = TypeVar("Result")


def clock(device: torch.device) -> float:
    """Seconds, as time.perf_counter, once all work that this thread queued on `device` is done. Work on other streams
    (the other model's) is not waited for."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be allocated on a device; of a CPU, see `hippo.system.available_memory`. On a GPU, what
    torch keeps of freed tensors is free."""
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return available_memory()


def total_memory(device: torch.device | str) -> int:
    """Bytes of a GPU."""
    return torch.cuda.mem_get_info(device)[1]


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """What the keys and values of a token take. config: the whole model's."""
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * head * dtype.itemsize)


def cores() -> int:
    """Cores that this process may use, at most OMP_THREAD_LIMIT: with more threads than that, torch computes bfloat16
    products wrong."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    return min(count, int(limit)) if limit.isdigit() and int(limit) else count


def shares() -> tuple[int, int]:
    """Threads for (target, draft) while both run: a quarter of the cores for the draft, at least one each."""
    draft = max(1, cores() // 4)
    return max(1, cores() - draft), draft


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Inside, torch uses `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_threads(count: int, others: int) -> None:
    """This thread uses `count` threads of torch's, and those that are started later `others`: torch gives them what was
    set last, in whatever thread."""
    torch.get_num_threads()  # from its first call on a thread has a number of its own
    torch.set_num_threads(count)
    last = threading.Thread(target=torch.set_num_threads, args=(others,))
    last.start()
    last.join()


def in_passing_thread(call: Callable[[], Result]) -> Result:
    """What a call returns or raises, made in a thread that ends with it.

    OpenMP keeps threads for each thread that has computed. Once there are more of them than cores they no longer wait
    busily, and short forwards take twice as long: a server loads in one thread and decodes in another.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="hippo-passing", daemon=True)
    thread.start()
    thread.join()
    return done.result()


_full = _sharers = 0


@contextmanager
def sharing(active: bool) -> Iterator[Callable[[bool], None]]:
    """Yields share(beside): True leaves the draft its share of the cores, False takes all of them. All threads are back
    on exit. Does nothing unless `active`. Several may be open at once, and close in any order."""
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


def has_tiles() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in tiles (AMX), so that some tokens cost what one does."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def has_bfloat16() -> bool:
    """Whether the CPU has bfloat16 products, so that half precision is faster than float32."""
    return has_tiles() or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def has_products(dtype: str) -> bool:
    """Whether the CPU multiplies matrices of a torch dtype, by its name, at the speed of float32 or faster."""
    if dtype == "bfloat16":
        return has_bfloat16()
    if dtype == "float16":
        here: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(here.get("amx_fp16") or here.get("avx512_fp16"))
    return True
