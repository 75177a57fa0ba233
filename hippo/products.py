"""Matrix products by oneDNN where the library that torch calls for them is slower on this CPU.

torch multiplies float32 matrices with MKL, which on processors of other makers than its own leaves half of their vector
width unused; oneDNN, which torch has too and takes for bfloat16, does not. Which is faster here is measured once, and
`hippo doctor` tells. Causal attention over a prompt, whose kernel in torch calls that library too, is then made of
products, block of queries by block. Only rounding differs. All our own choice.
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
_WIDE_HEAD = 64  # numbers in an attention head from which oneDNN is worth its preparations
_WIDE_BLOCK, _BLOCK = 128, 64  # queries at once, of wide heads and of others
_SHORT = 640  # tokens of a prompt up to which other heads are worth it; then their scores leave the cache


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


def _causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Attention of a prompt's tokens, (1, H, L, d), to themselves, (1, H_kv, L, d); None for any other."""
    batch, _, length, size = query.shape
    key_heads = key.shape[1]
    if not is_causal or dropout_p or batch > 1 or key.shape[2] != length or not _plain(query, key, value):
        return None
    if size < _WIDE_HEAD and length > _SHORT:
        return None
    attend, block = (_wide_heads, _WIDE_BLOCK) if size >= _WIDE_HEAD else (_narrow_heads, _BLOCK)
    grouped = query[0].reshape(key_heads, -1, length, size) * (size**-0.5 if scale is None else scale)
    later = query.new_full((block, block), float("-inf")).triu_(1)
    result = torch.empty_like(grouped)
    for begin in range(0, length, block):
        end = min(begin + block, length)
        rows = grouped[:, :, begin:end]
        unseen = later[: end - begin, : end - begin]
        part = attend(rows.reshape(key_heads, -1, size), key[0, :, :end], value[0, :, :end], unseen)
        result[:, :, begin:end] = part.view_as(rows)
    return result.view_as(query)


def _narrow_heads(query: Tensor, key: Tensor, value: Tensor, later: Tensor) -> Tensor:
    """Attention of scaled queries, (H_kv, groups * n, d), those of the last n keys, to (H_kv, m, d). later: (n, n),
    minus infinity where a query must not see a key."""
    scores = torch.bmm(query, key.mT)
    scores.view(len(key), -1, len(later), key.shape[1])[..., -len(later) :] += later
    return torch.bmm(scores.softmax(-1), value)


def _wide_heads(query: Tensor, key: Tensor, value: Tensor, later: Tensor) -> Tensor:
    """As `_narrow_heads`, a head at a time."""
    result = torch.empty_like(query)
    for head, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
        scores = _onednn(q, k)
        scores.view(-1, len(later), len(k))[..., -len(later) :] += later
        result[head] = _onednn(scores.softmax(-1), v.t().contiguous())
    return result


_TAKEN: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.scaled_dot_product_attention: _causal_attention,
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
