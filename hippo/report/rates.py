"""How fast this machine multiplies a few tokens by weights that it reads from memory. Measured in about a second, kept
on disk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from hippo import state
from hippo.device import clock
from hippo.forward.quantize import GROUP, quantize

WIDTHS = (1, 2, 4, 8)  # tokens that are timed
_SIDE = 2048  # of the weights that are timed
_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}  # read in a pass: more than caches hold
_PASSES, _STEPS = 3, 200


@dataclass(frozen=True)
class Rates:
    """seconds: of a product by one number of a weight, by its tokens. operation: seconds that starting an operation
    takes."""

    seconds: dict[int, float]
    operation: float

    def at(self, width: int) -> float:
        """Seconds a number of a weight at any width: between those measured on a line, beyond them on the last."""
        known = sorted(self.seconds)
        above = next((w for w in known[1:] if w >= width), known[-1])
        below = known[known.index(above) - 1]
        slope = (self.seconds[above] - self.seconds[below]) / (above - below)
        return self.seconds[below] + slope * (width - below)


def rates(device: str, dtype: str, bits: int = 16) -> Rates:
    """Measured for weights of a torch dtype, or packed in 8 or 4 bits, with torch's current number of threads.

    On a GPU, where packing needs torchao, packed weights are taken to be read as fast as others, byte by byte.
    """
    if bits != 16 and device != "cpu":
        plain = rates(device, dtype)
        share = packed_bytes(bits) / getattr(torch, dtype).itemsize
        return Rates({width: seconds * share for width, seconds in plain.seconds.items()}, plain.operation)
    of = {"device": device, "dtype": dtype, "bits": bits, "threads": torch.get_num_threads()}
    if (found := _kept(state.read("rates", of))) is None:
        found = _measured(device, dtype, bits, torch.get_num_threads())
        state.write("rates", of, {"seconds": found.seconds, "operation": found.operation})
    return found


def packed_bytes(bits: int) -> float:
    """Of a number of a weight in 8 or 4 bits, with what its group has in common."""
    return bits / 8 + (4 / GROUP if bits == 4 else 0)


def _kept(value: Any) -> Rates | None:
    try:
        seconds, operation = {width: float(value["seconds"][str(width)]) for width in WIDTHS}, float(value["operation"])
    except (KeyError, TypeError, ValueError):
        return None
    return Rates(seconds, operation) if all(0 < one < 1 for one in (*seconds.values(), operation)) else None


@cache
@torch.inference_mode()
def _measured(device: str, dtype: str, bits: int, threads: int) -> Rates:
    kind = getattr(torch, dtype)
    linear = nn.utils.skip_init(nn.Linear, _SIDE, _SIDE, bias=False, dtype=kind, device=device)
    nn.init.ones_(linear.weight)
    stack = nn.Sequential(linear)
    quantize(stack, bits)
    size = _SIDE * _SIDE * (kind.itemsize if bits == 16 else bits / 8)
    layers = [stack, *(copy.deepcopy(stack) for _ in range(int(_BYTES[torch.device(device).type] / size) - 1))]
    seconds = {}
    for width in WIDTHS:
        best = _best(device, layers, torch.ones(width, _SIDE, dtype=kind, device=device))
        seconds[width] = best / (len(layers) * _SIDE * _SIDE)
    x = torch.ones(1, _SIDE, dtype=kind, device=device)
    operation = _best(device, [x.add] * _STEPS, 1) / _STEPS
    # More tokens never take less time; a machine that is busy at times measures so.
    return Rates({width: max(seconds[w] for w in WIDTHS if w <= width) for width in WIDTHS}, operation)


def _best(device: str, calls: Sequence[Callable[[Any], Any]], argument: Any) -> float:
    """Seconds of all calls, the best of some passes."""
    taken = []
    for _ in range(1 + _PASSES):
        began = clock(torch.device(device))
        for call in calls:
            call(argument)
        taken.append(clock(torch.device(device)) - began)
    return max(min(taken[1:]), 1e-9)
