"""Whether a CPU's products in half precision are batch-invariant: each row has the same bits, however many rows there
are.

oneDNN adds up along a row in one order, whatever the number of rows, but has another kernel for a single row. That was
found on an AMD EPYC, and nothing promises it: the layers of each model are tried at load, and what came out is kept on
disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hippo import state
from hippo.device import on_threads, shares
from hippo.forward.fused import is_plain
from hippo.forward.quantize import PackedLinear

MOST_ROWS = 128
_ROWS = (MOST_ROWS, 64, 32, 25, 16, 9, 8, 7, 6, 5, 4, 3, 2)
_MANY = 50_000  # outputs of which some show another order of adding up, whatever is added
_THREADED = (MOST_ROWS, 8, 2)  # also tried with the threads that the target has while the draft works

_known: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@torch.inference_mode()
def least_rows(language_model: nn.Module, head: nn.Module) -> int:
    """The rows, 1 or 2, from which on, up to MOST_ROWS, a row's bits do not depend on the others. 0 if there is no such
    number, or if a part of the model is not known to treat each row alone. Found out once for a model."""
    if language_model not in _known:
        _known[language_model] = _tried(language_model, head)
    return _known[language_model]


def _tried(language_model: nn.Module, head: nn.Module) -> int:
    layers: dict[tuple[Any, ...], nn.Linear] = {}
    for module in [*language_model.modules(), head]:
        if is_plain(module):
            layers[str(module.weight.dtype), module.in_features, module.out_features, module.bias is None] = module
        elif not isinstance(module, nn.Embedding) and _holds_matrices(module):
            return 0
    of = {"layers": sorted(layers), "threads": torch.get_num_threads()}
    if (kept := state.read("rows", of)) in (0, 1, 2):
        return int(kept)
    found = max((_least(layer) for layer in layers.values()), key=lambda rows: rows or 3, default=0)
    state.write("rows", of, found)
    return found


def _holds_matrices(module: nn.Module) -> bool:
    """Itself, not in modules of its own. A mixture of experts does: how many rows each of them has depends on all."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return isinstance(module, PackedLinear) or any(tensor.ndim > 1 for tensor in own)


def _least(layer: nn.Linear) -> int:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(MOST_ROWS, layer.in_features, generator=generator)
    if layer.out_features < _MANY:
        x, layer = _cancelling(x, generator), _all_ones(layer, generator)
    x = x.to(layer.weight.dtype)
    expected = layer(x)
    if not all(torch.equal(rows, expected[: len(rows)]) for rows in _outputs(layer, x)):
        return 0
    return 1 if torch.equal(layer(x[:1]), expected[:1]) else 2


def _outputs(layer: nn.Linear, x: Tensor) -> Iterator[Tensor]:
    for count in _ROWS[1:]:
        yield layer(x[:count])
    with on_threads(min(torch.get_num_threads(), shares()[0])):
        for count in _THREADED:
            yield layer(x[:count])


def _cancelling(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of which each sums up to nothing: all that is left of their sum is rounding, by the order of adding up."""
    half, odd = divmod(x.shape[1], 2)
    # Over more powers of two than float32 has digits, within the range of float16.
    x = x[:, :half] * 2 ** (20 * torch.rand(len(x), half, generator=generator) - 8)
    x = torch.cat([x, -x], dim=1)[:, torch.randperm(2 * half, generator=generator)]
    return F.pad(x, (0, odd))


def _all_ones(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """A layer of the same shape that adds up its input."""
    like = torch.nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, layer.bias is not None)
    like = like.to(layer.weight.dtype)
    like.weight.fill_(1)
    if layer.bias is not None:
        like.bias.copy_(torch.randn(layer.out_features, generator=generator))
    return like
