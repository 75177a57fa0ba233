"""Free memory, and dividing cores between two models."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hippo import device


def test_free_memory_shrinks_when_some_is_taken():
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc/meminfo here")
    for _ in range(20):  # others may give memory back at this very moment
        before = device.free_memory()
        taken = np.ones(600 << 17)  # 600 MiB
        left = device.free_memory()
        assert left > 1 << 20 and taken.any()
        if left < before - (300 << 20):
            return
        del taken
    pytest.fail("free memory does not shrink")


class Allocator:
    """As torch's on a GPU of so many bytes: what is freed stays reserved, and is given out again."""

    def __init__(self, total):
        self.total, self.reserved, self.allocated = total, 0, 0

    def take(self, size):
        self.allocated += size
        self.reserved = max(self.reserved, self.allocated)

    def free(self, size):
        self.allocated -= size


def test_memory_that_torch_keeps_is_free(monkeypatch):
    gpu = Allocator(80 << 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gpu.total - gpu.reserved, gpu.total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: gpu.reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: gpu.allocated)
    gpu.take(16 << 30)  # the weights
    assert device.free_memory("cuda:0") == 64 << 30
    gpu.take(40 << 30)  # a long prompt
    assert device.free_memory("cuda:0") == 24 << 30
    gpu.free(40 << 30)
    assert device.free_memory("cuda:0") == 64 << 30


def test_the_two_never_want_more_than_there_is(monkeypatch):
    for count in (1, 2, 4, 16):
        monkeypatch.setattr(device, "cores", lambda count=count: count)
        target, draft = device.shares()
        assert target >= 1 <= draft and target + draft <= max(2, count) and target >= draft


def test_a_limit_on_threads_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    assert device.cores() == 1 and device.shares() == (1, 1)


def test_what_is_shared_is_put_back(monkeypatch):
    monkeypatch.setattr(device, "shares", lambda: (1, 1))
    before = torch.get_num_threads()
    with device.sharing(True) as share:
        share(True)
        assert torch.get_num_threads() == 1
        share(False)
        assert torch.get_num_threads() == before
        share(True)
    assert torch.get_num_threads() == before
    with device.sharing(False) as share:
        share(True)
        assert torch.get_num_threads() == before


def test_two_at_once_closed_in_any_order(monkeypatch):
    monkeypatch.setattr(device, "shares", lambda: (1, 1))
    before = torch.get_num_threads()
    first, second = device.sharing(True), device.sharing(True)
    first.__enter__()(True)
    second.__enter__()(True)
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == before


def test_dtypes_whose_products_are_slow_here(monkeypatch):
    monkeypatch.setattr(device, "has_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert not device.has_products("bfloat16") and not device.has_products("float16")
    assert device.has_products("float32") and device.has_products("auto")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_fp16": True})
    assert device.has_products("float16")


def test_a_thread_that_uses_one_thread_leaves_the_others_theirs():
    """Else the engine's next thread would run the target on one core after any reading ahead."""
    full, seen = torch.get_num_threads(), {}

    def read():
        device.use_threads(1, full)
        seen["reader"] = torch.get_num_threads()

    for name, run in (("", read), ("later", lambda: seen.update(later=torch.get_num_threads()))):
        thread = threading.Thread(target=run, name=name)
        thread.start()
        thread.join()
    assert seen == {"reader": 1, "later": full} and torch.get_num_threads() == full


def test_a_passing_thread_takes_those_of_openmp_with_it():
    """By name: other tests' threads may end meanwhile."""

    def tasks():
        return set(os.listdir("/proc/self/task"))

    def computes():
        device.use_threads(2, torch.get_num_threads())
        torch.ones(256, 256) @ torch.ones(256, 256)
        return tasks()

    before = tasks()
    new = device.in_passing_thread(computes) - before
    assert len(new) >= 2, "its own, and one of OpenMP's"
    for _ in range(100):
        if not (left := new & tasks()):
            break
        time.sleep(0.05)
    assert not left
    with pytest.raises(ZeroDivisionError):
        device.in_passing_thread(lambda: 1 / 0)
