"""Matrix products by oneDNN where the library that torch calls for them is slower on this CPU.

torch multiplies float32 matrices with MKL, which on processors of other makers than its own leaves half of their vector
width unused; oneDNN, which torch has too and takes for bfloat16, does not. Which is faster here is measured once, and
`hippo doctor` tells. Only rounding differs. All our own choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_WORTH = 1.2  # times as fast, to be taken
_LEAST = 3 << 20  # multiplications of a product; what a smaller one saves, oneDNN takes to prepare for its shape
_FEW_ROWS = 4  # with fewer, only reading the weight counts, at which oneDNN is better only if it is large:
_LARGE = 4 << 20  # numbers in such a weight


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (n, k) @ weight (k, m), a transposed view of one that lies as (m, k), + bias (m,)."""
    if _worth_it(len(x), weight):
        return _onednn(x, weight.t(), bias)
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def product_added(to: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """to (n, m) + x (n, k) @ weight (k, m), as in `product`."""
    if _worth_it(len(x), weight):
        return torch.ops.mkldnn._linear_pointwise(x, to, weight.t(), None, "add")
    return torch.addmm(to, x, weight)


def fast_products(x: Tensor, rows: int = 1 << 20) -> AbstractContextManager[Any]:
    """Inside, a model's linear layers, and convolutions over the whole of their input, are oneDNN's where that is worth
    it, whatever code calls them. x: an input of the model (..., D) on its device; rows: of the products, many unless
    said."""
    few = rows < _FEW_ROWS and x.shape[-1] ** 2 < _LARGE  # then listening to every call costs more than it brings
    if few or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not _plain(x) or not onednn_gain():
        return nullcontext()
    return _FastProducts()


@cache
def onednn_gain() -> float:
    """How many times as fast as torch's own products oneDNN's are here, measured once a process; 0 where they are not
    there or not worth it."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0.0
    with torch.inference_mode():
        x, weight = torch.ones(512, 256), torch.ones(512, 256)
        ways: tuple[Callable[[], Tensor], ...] = (
            lambda: F.linear(x, weight),
            lambda: _onednn(x, weight),
        )
        try:
            # The first of each starts threads and compiles, and does not count.
            plain, onednn = (min(times[1:]) for times in zip(*(map(_seconds, ways) for _ in range(6)), strict=True))
        except RuntimeError:  # a build of torch that has the name and not the operation
            return 0.0
    return plain / onednn if plain / onednn >= _WORTH else 0.0


class _FastProducts(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        taken = _TAKEN.get(func)
        y = None if taken is None else taken(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if y is None else y


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """A linear layer by oneDNN; None to leave it to torch."""
    if not _plain(x, weight, bias) or not _worth_it(x.numel() // x.shape[-1], weight):
        return None
    return _onednn(x, weight, bias)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any) -> Tensor | None:
    """A convolution whose kernel covers all of its input, patches cut out beforehand, as one product."""
    if x.shape[1:] != weight.shape[1:] or len(rest) < 2 or named or any(rest[1]) or not _plain(x, weight, bias):
        return None
    y = _onednn(x.flatten(1), weight.flatten(1), bias)
    return y.view(*y.shape, *[1] * (x.ndim - 2))


_TAKEN: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
}


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., k) @ weight (m, k) transposed, + bias (m,)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _plain(*tensors: Tensor | None) -> bool:
    """Whether tensors hold float32 numbers on a CPU and nothing else: no packed weights, no adapters."""
    return all(
        t is None
        or (type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 and t.device.type == "cpu" and t.numel())
        for t in tensors
    )


def _worth_it(rows: int, weight: Tensor) -> bool:
    size = weight.numel()
    if weight.dtype != torch.float32 or weight.is_cuda:
        return False
    return rows * size >= _LEAST and (rows >= _FEW_ROWS or size >= _LARGE) and onednn_gain() > 0


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
