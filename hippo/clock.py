"""Wall time that waits for the device."""

from __future__ import annotations

import time

import torch


def clock(device: torch.device) -> float:
    """Seconds, as time.perf_counter, once everything that this thread has queued on `device` is done: what the other
    model has queued there, on a stream of its own, is not waited for."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()
