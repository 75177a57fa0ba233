"""Drafts in fewer bits: the linear layers of a text model and its head, with packed weights of 4 or 8 bits.

Decoding one token at a time reads every weight once, so its time is that of the bytes read. The target still decides
every token: fewer bits cost acceptance at most. On a CPU the products are torch's own:

- 4 bits: groups of 32 inputs with a scale and a minimum each, rounded to nearest, activations in bfloat16. Its kernel
  takes a few tokens at once: for more, such as prompts, there is a copy in 8 bits where memory is plentiful and those
  products are in integers.
- 8 bits: a scale for each output. With AVX-512 VNNI the activations are 8-bit integers too, with a scale for each
  token; this is several times as fast as bfloat16 for prompts as well. Elsewhere they stay in bfloat16.

On a GPU the weights are torchao's. Source: the rounding of group-wise and per-channel affine quantisation as in torchao
(`Int4WeightOnlyConfig`, TINYGEMM) and LLM.int8() without outliers (Dettmers et al., 2022).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from hippo.device import free_memory
from hippo.errors import CheckpointError
from hippo.families import family_of

GROUP = 32  # inputs that share a scale, of 4 bits
_AT_ONCE = 4  # tokens that the kernel of 4 bits multiplies for nearly the price of one
_PLENTY = 0.1  # of the free memory, that a second copy of the weights may take
_WORTH = 1.1  # times as fast, to take fewer bits
_ROWS = 4096  # outputs packed at a time, which bounds the memory that packing takes; a multiple of the kernel's 64
_TIMED, _COPIES = 1 << 20, 8  # numbers in a weight that is timed, and how many such: more than a core's own cache


def quantize(model: Any, bits: int) -> None:
    """Replace, in place, the linear layers of a model's text stack and its head by packed ones. Not the vision tower,
    not the embeddings.

    model: one that nobody else uses, of a known family, or a text model alone; on one device. bits: 4, 8, or 16, which
    changes nothing. A layer that does not fit stays as it is, see `unpacked`. Raises CheckpointError if a GPU's packed
    weights need a package that is not installed.
    """
    if bits == 16:
        return
    chosen = {name: layer for name, layer in _linears(model) if not _why_not(layer, bits)}
    if any(layer.weight.is_cuda for layer in chosen.values()):
        _by_torchao(model, list(chosen.values()), bits)
    else:
        twice = bits == 4 and _integer_products()
        twice = twice and sum(layer.weight.numel() for layer in chosen.values()) < _PLENTY * free_memory()
        for name, layer in chosen.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _packed(layer, bits, twice))


def linear_shapes(model: Any) -> tuple[tuple[int, int], ...]:
    """(out_features, in_features) of every layer that `quantize` may replace: what `product_seconds` is to time."""
    return tuple((layer.out_features, layer.in_features) for _, layer in _linears(model))


def unpacked(model: Any, bits: int) -> tuple[dict[str, str], int]:
    """Of the layers that `quantize` would pack: those it would leave, by name with the reason, and how many there are.

    model: may be without weights, on the meta device; it is then taken for one on a CPU.
    """
    layers = _linears(model)
    return {name: why for name, layer in layers if (why := _why_not(layer, bits))}, len(layers)


def fastest_bits(shapes: Iterable[tuple[int, int]]) -> int:
    """4, 8 or 16: which makes the products of one token fastest on this CPU, with torch's current number of threads.
    Fewer bits must be worth their rounding: faster by a tenth."""
    seconds = product_seconds(shapes)
    return min((16, 8, 4), key=lambda bits: seconds[bits] * _WORTH ** {16: 0, 8: 1, 4: 2}[bits])


def product_seconds(shapes: Iterable[tuple[int, int]]) -> dict[int, float]:
    """Seconds that the products of one token with weights of these shapes take on this CPU: bits -> seconds, 16 for
    bfloat16. Measured once for each shape, number of threads and process, some ten milliseconds each."""
    threads, shapes = torch.get_num_threads(), list(shapes)
    return {bits: sum(_measured(o, i, bits, threads) for o, i in shapes) for bits in (4, 8, 16)}


class PackedLinear(nn.Module):
    """A linear layer (..., in_features) -> (..., out_features) whose packed weights are no parameters: they are neither
    saved nor moved nor cast. Results have the input's dtype."""

    bits: int

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x.reshape(-1, self.in_features)).to(x.dtype)
        return (y if self.bias is None else y.add_(self.bias)).view(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor) -> Tensor:
        """(n, in_features) -> (n, out_features), without the bias, in any dtype."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        twin = copy.copy(self)  # opaque tensors of oneDNN can be cloned and not deep-copied
        for name, value in vars(self).items():
            twin.__dict__[name] = value.clone() if isinstance(value, Tensor) else copy.deepcopy(value, memo)
        return twin


class _FourBits(PackedLinear):
    """many: the same layer for more tokens at once than this kernel is made for."""

    bits = 4

    def __init__(self, linear: nn.Linear, many: PackedLinear | None = None) -> None:
        super().__init__(linear)
        self._many = many
        blocks = [_four_bits(block) for block in linear.weight.detach().split(_ROWS)]
        self._weight = torch.cat([weight for weight, _ in blocks])
        self._affine = torch.cat([affine for _, affine in blocks], dim=1)

    def product(self, x: Tensor) -> Tensor:
        if self._many is not None and len(x) > _AT_ONCE:
            return self._many.product(x)
        # In float32 this kernel has no vector code: a hundred times slower.
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), self._weight, GROUP, self._affine)


class _EightBits(PackedLinear):
    """With activations in bfloat16."""

    bits = 8

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self._weight, scale = _eight_bits(linear.weight.detach())
        self._scale = scale.bfloat16()

    def product(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int8pack_mm(x.bfloat16(), self._weight, self._scale)


class _AllEightBits(PackedLinear):
    """With activations in 8 bits, a scale for each token, so that tokens do not depend on each other."""

    bits = 8

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight, self._scale = _eight_bits(linear.weight.detach())
        self._weight = torch.ops.onednn.qlinear_prepack(weight, None)
        self._zeros = torch.zeros(self.out_features, dtype=torch.long)

    def product(self, x: Tensor) -> Tensor:
        x = x.float()
        scale = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True).div_(127).clamp_(min=1e-30)
        x = (x / scale).round_().add_(128).to(torch.uint8)  # oneDNN is fast for unsigned activations alone
        y = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 128, self._weight, self._scale, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y.mul_(scale)


def _four_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Packed (m, k / 2) and bfloat16 (k / GROUP, m, 2), scale and middle of each group, from (m, k)."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True).clamp_(max=0), groups.amax(-1, keepdim=True).clamp_(min=0)
    scale = ((high - low) / 15).clamp_(min=1e-30).bfloat16()
    middle = (low + 8 * scale.float()).bfloat16()
    numbers = ((groups - middle.float()) / scale.float()).round_().add_(8).clamp_(0, 15).flatten(1).int()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    return packed, torch.cat([scale, middle], dim=-1).transpose(0, 1).contiguous()


def _eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (m, k) and float32 (m,) scales, from (m, k)."""
    scale = weight.abs().amax(1).float().div_(127).clamp_(min=1e-30)
    rows = zip(weight.split(_ROWS), scale.split(_ROWS), strict=True)
    return torch.cat([(block.float() / by[:, None]).round_().to(torch.int8) for block, by in rows]), scale


@cache
def _integer_products() -> bool:
    """Whether products of 8-bit integers are fast and exact here: without VNNI their sums may overflow."""
    supported: Callable[[], bool] = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return supported() and torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


def _packed(layer: nn.Linear, bits: int, twice: bool = False) -> PackedLinear:
    with torch.inference_mode(False), torch.no_grad():
        if bits == 4:
            return _FourBits(layer, _AllEightBits(layer) if twice else None)
        return _AllEightBits(layer) if _integer_products() else _EightBits(layer)


def _why_not(layer: nn.Linear, bits: int) -> str:
    """Why a layer keeps its weights; empty if it need not."""
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter or not layer.weight.is_floating_point():
        return "quantised or adapted already"
    # 8 bits without VNNI: the kernel reads 16 inputs at a time, past the end if there are fewer.
    if (bits == 4 or not _integer_products()) and layer.in_features % GROUP:
        return f"input width not a multiple of {GROUP}"
    if bits == 4 and layer.out_features % 16:
        return "output width not a multiple of 16"
    if layer.weight.is_cuda and layer.weight.dtype != torch.bfloat16:
        return "not in bfloat16, which a GPU's packed weights need"
    return ""


def _parts(model: Any) -> list[nn.Module]:
    """The text model and its head, or the text model alone where it is given without one."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [model] if head is None else [family_of(model).language_model(model), head]


def _linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of the text model and its head, by their names in the model."""
    inside = {id(module) for part in _parts(model) for module in part.modules()}
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]


def _by_torchao(model: nn.Module, layers: list[nn.Linear], bits: int) -> None:
    try:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise CheckpointError(
            f"a draft in {bits} bits on a GPU needs torchao", "pip install torchao, or use --draft-bits 16"
        ) from None
    four = Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d")
    config = four if bits == 4 else Int8WeightOnlyConfig()
    chosen = set(map(id, layers))
    quantize_(model, config, filter_fn=lambda module, _: id(module) in chosen)


@cache
def _measured(outputs: int, inputs: int, bits: int, threads: int) -> float:
    """Seconds of one token's product, from copies of a part of such a weight."""
    rows = min(outputs, max(64, _TIMED // inputs // 64 * 64))
    plain = nn.utils.skip_init(nn.Linear, inputs, rows, bias=False, dtype=torch.bfloat16)  # draws no random numbers
    nn.init.ones_(plain.weight)
    first = plain if bits == 16 or _why_not(plain, bits) else _packed(plain, bits)
    x = torch.ones(1, inputs, dtype=torch.bfloat16)
    copies = [first, *(copy.deepcopy(first) for _ in range(_COPIES - 1))]
    best = float("inf")
    with torch.inference_mode():
        for _ in range(3):
            began = time.perf_counter()
            for layer in copies:
                layer(x)
            best = min(best, time.perf_counter() - began)
    return best / len(copies) * outputs / rows
