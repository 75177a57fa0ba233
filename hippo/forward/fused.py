"""Short forwards with fewer operations: a small model's decode step spends its time on starting operations, not on
arithmetic. On a GPU these forwards are what CUDA graphs record.

They serve decoders laid out like Llama's, Qwen2's and Qwen3's: RMS norm, rotary positions, grouped-query attention with
or without an RMS norm per head, gated MLP. Residuals are added by the product before them, and keys and values are
written in one copy. On a GPU quantised linear layers are served too, each by its own forward. The model itself is not
changed. Its layout is inspected, then both forwards are compared.
HIPPO_FUSED=0 in the environment turns fused forwards off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeGuard
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hippo.forward.kv_cache import FixedWindow, KVCache, Window, cache_argument
from hippo.forward.quantize import PackedLinear

_ENABLED = os.environ.get("HIPPO_FUSED") != "0"
_HEAD_NORMS = ("q_norm", "k_norm")
_STATIC_ROTARY = ("default", "linear", "llama3", "yarn", "proportional")
_TOLERANCE = 1e-3  # relative, float32: rounding is a thousand times smaller, a wrong formula a thousand times larger
_HALF_TOLERANCE = 5e-2  # bfloat16 and float16, whose rounding reaches about 0.01 after many layers

_Product = Callable[[Tensor], Tensor]  # (n, k) -> (n, m)
_Sum = Callable[[Tensor, Tensor], Tensor]  # (n, m) and (n, k) -> the first and the product of the second, (n, m)


class _Layer(NamedTuple):
    norm: Tensor
    qkv: tuple[_Product, ...]
    head_norms: tuple[Tensor, ...]  # of queries and keys, or none
    out: _Sum
    second_norm: Tensor
    gate_up: tuple[_Product, ...]
    down: _Sum


class NotFusable(Exception):
    """Why a model keeps transformers' own forward; str() is a short clause."""


class FusedDecoder:
    """The text stack of a model, for a few new tokens of one request or of several. Raises NotFusable."""

    def __init__(self, language_model: Any) -> None:
        _require_fusable(language_model)
        config, attention = language_model.config, language_model.layers[0].self_attn
        self._rotary_embedding, self._norm = language_model.rotary_emb, language_model.norm.weight
        self._epsilon = config.rms_norm_eps
        self._heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads
        self._size, self._scaling = attention.head_dim, attention.scaling
        self._activation = language_model.layers[0].mlp.act_fn
        self._sections: list[int] = (getattr(config, "rope_parameters", None) or {}).get("mrope_section") or []
        self._layers = [_parts(layer) for layer in language_model.layers]
        self.idle: list[Any] = []  # recorded forwards that no request uses, see `recorded_for`
        self.unrecorded = ""  # why forwards are not recorded any more, see `cuda_graphs`
        self.prepared = False  # whether forwards were recorded at load
        _require_equal(self, language_model)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self._layers)

    @property
    def axes(self) -> int:
        """Axes of a position."""
        return 3 if self._sections else 1

    @property
    def keys(self) -> Tensor:
        """(1, H_kv, 0, d), of the dtype and on the device of keys and values."""
        return self._norm.new_empty(1, self._key_heads, 0, self._size)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for `forward` at positions (axes, n): (n, 1, d) each, the sign of the rotation included."""
        like = self._norm.new_empty(0)
        both = self._rotary_embedding(like, positions if len(positions) == 1 else positions[:, None])
        cos, sin = (self._merged(x).reshape(-1, 1, self._size) for x in both)
        return cos, torch.cat([-sin[..., : self._size // 2], sin[..., self._size // 2 :]], dim=-1)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], *kvs: tuple[KVCache, int]) -> Tensor:
        """Hidden states (n, D) of new tokens with embeddings x (n, D). kvs: of each request its cache, and how many of
        the tokens are its own, by which the cache becomes longer."""
        return self.forward_in(x, rotary, *((kv.append(count, self.keys), count) for kv, count in kvs))

    def forward_in(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], *windows: tuple[Window | FixedWindow, int]
    ) -> Tensor:
        """`forward` over the keys and values of windows, each with its number of tokens."""
        count, half = len(x), self._size // 2
        cos, sin = rotary
        heads, key_heads, size, width = self._heads, self._key_heads, self._size, x.shape[1:]
        groups, end, parts = heads // key_heads, 0, []
        for window, own in windows:
            parts.append((slice(end, end + own), window, window.mask(x).repeat(groups, 1)[None]))
            end += own
        for number, layer in enumerate(self._layers):
            h = F.rms_norm(x, width, layer.norm, self._epsilon)
            h = torch.cat([product(h) for product in layer.qkv], dim=-1)
            h = h.view(count, heads + 2 * key_heads, size)
            rotated = h[:, : heads + key_heads]
            if layer.head_norms:
                _normalise(rotated, (heads, key_heads), layer.head_norms, self._epsilon)
            swapped = rotated.roll(half, -1)
            rotated.mul_(cos).addcmul_(swapped, sin)
            new = h[:, heads:].view(count, 2, key_heads, size).permute(1, 2, 0, 3)
            attended = [
                self._attend(h[rows, :heads], *window.write(number, new[:, :, rows]), mask)
                for rows, window, mask in parts
            ]
            x = layer.out(x, attended[0] if len(attended) == 1 else torch.cat(attended))
            h = F.rms_norm(x, width, layer.second_norm, self._epsilon)
            gate, up = (product(h) for product in layer.gate_up)
            x = layer.down(x, self._activation(gate).mul_(up))
        return F.rms_norm(x, width, self._norm, self._epsilon)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """(n, H d) attention of n queries (n, H, d) to keys and values (H_kv, length, d). mask: broadcasts to
        (H_kv, groups n, length)."""
        count = len(query)
        grouped = query.transpose(0, 1).reshape(self._key_heads, -1, self._size)
        h = torch.bmm(_weights(grouped, keys, mask, self._scaling), values)
        return h.view(self._heads, count, self._size).transpose(0, 1).reshape(count, -1)

    def _merged(self, x: Tensor) -> Tensor:
        """M-RoPE's three axes merged, which transformers before about 5.20 leaves to its attention layers."""
        if x.ndim < 4:
            return x
        return torch.cat([part[i % 3] for i, part in enumerate(x.split(2 * self._sections, dim=-1))], dim=-1)


def _parts(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        layer.input_layernorm.weight.detach(),
        tuple(map(_product, (attention.q_proj, attention.k_proj, attention.v_proj))),
        tuple(getattr(attention, name).weight.detach() for name in _HEAD_NORMS if hasattr(attention, name)),
        _sum(attention.o_proj),
        layer.post_attention_layernorm.weight.detach(),
        tuple(map(_product, (mlp.gate_proj, mlp.up_proj))),
        _sum(mlp.down_proj),
    )


def _product(linear: nn.Module) -> _Product:
    if not is_plain(linear):
        return linear
    bias: Any = linear.bias
    return partial(F.linear, weight=linear.weight.detach(), bias=None if bias is None else bias.detach())  # type: ignore


def _sum(linear: nn.Module) -> _Sum:
    """Of a linear layer without a bias."""
    if not is_plain(linear):
        return lambda x, h: x + linear(h)
    weight: Any = linear.weight
    return partial(_added, weight.detach().t())


def _added(weight: Tensor, x: Tensor, h: Tensor) -> Tensor:
    return torch.addmm(x, h, weight)


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer computes with its weight as it is; packed weights have a class of their own, or their layer."""
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter


def _normalise(x: Tensor, parts: tuple[int, int], weights: tuple[Tensor, ...], epsilon: float) -> None:
    """RMS norm of each head of x (n, H + H_kv, d) in place, in float32 whatever its dtype, as transformers computes it.
    parts: H and H_kv. weights: (d,) of queries and of keys."""
    x.mul_(x.float().square().mean(-1, keepdim=True).add_(epsilon).rsqrt_())
    for part, weight in zip(x.split(parts, dim=1), weights, strict=True):
        part.mul_(weight)


def _weights(query: Tensor, keys: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention weights (H_kv, n, length) of queries (H_kv, n, d) and keys (H_kv, length, d); mask broadcasts. The
    softmax takes float32 scores, as transformers' kernels do."""
    if query.dtype == torch.float32:
        return torch.baddbmm(mask, query, keys.mT, alpha=scaling).softmax(-1)
    if query.is_cuda:
        scores = torch.bmm(query, keys.mT, out_dtype=torch.float32)
    else:
        scores = torch.bmm(query.float(), keys.mT.float())
    return scores.mul_(scaling).add_(mask).softmax(-1).to(query.dtype)


# For each text model: its state when it was inspected, and its fused form or why there is none.
_known: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], FusedDecoder | str]] = WeakKeyDictionary()


def fused(language_model: nn.Module) -> FusedDecoder | None:
    """The fused form of a text model, made once, and again when the model has changed; None where there is none."""
    if not _ENABLED or any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return None
    state, verdict = _known.get(language_model, ((), ""))
    if state != _state(language_model):
        try:
            verdict = FusedDecoder(language_model)
        except NotFusable as reason:
            verdict = str(reason)
        except Exception as error:
            # Models of an unforeseen shape keep their own forward.
            verdict = f"it is not what was expected ({type(error).__name__}: {error})"
        _known[language_model] = _state(language_model), verdict
    return verdict if isinstance(verdict, FusedDecoder) else None


def why_not_fused(language_model: nn.Module) -> str:
    """Why a text model keeps transformers' own forward; empty if it does not."""
    if fused(language_model):
        return ""
    return str(_known.get(language_model, ((), "autocast is on"))[1]) if _ENABLED else "HIPPO_FUSED is 0"


def _state(model: nn.Module) -> tuple[Any, ...]:
    """Changes when a module, a parameter's storage or a hook does."""
    parts: list[Any] = []
    for module in model.modules():
        parts.append(
            (id(module), len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in module.__dict__)
        )
        parts += [None if p is None else (p.data_ptr(), p.dtype) for p in module._parameters.values()]
    return tuple(parts)


def _require_fusable(model: Any) -> None:
    """Raises NotFusable naming the first thing that is not as expected."""
    packed = {id(p) for module in model.modules() if _is_packed(module) for p in module.parameters()}
    others = [p for p in model.parameters() if id(p) not in packed]
    if any(type(p) is not nn.Parameter for p in others):
        raise NotFusable("its weights are adapted or held in parts")
    places = {(p.device, p.dtype) for p in others}
    served = len(places) == 1 and all(_served(device.type, dtype) for device, dtype in places)
    if not served or len({p.device for p in model.parameters()}) > 1:
        raise NotFusable("it is not in one precision on one GPU, nor in float32 on a CPU")
    config = model.config
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") not in _STATIC_ROTARY:
        raise NotFusable("its rotary positions change with length")
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise NotFusable("not all of its layers attend to everything")
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    expected = {
        "": ({"input_layernorm", "post_attention_layernorm", "self_attn", "mlp"},),
        "self_attn": (attention, attention | set(_HEAD_NORMS)),
        "mlp": ({"gate_proj", "up_proj", "down_proj", "act_fn"},),
    }
    for layer in model.layers:
        for name, layouts in expected.items():
            module = layer.get_submodule(name)
            if {child for child, _ in module.named_children()} not in layouts:
                raise NotFusable("its layers are not laid out like Llama's")
        for module in layer.modules():
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            # transformers' own hooks only collect hidden states or attentions that a caller asks for.
            if "forward" in module.__dict__ or any(not h.__module__.startswith("transformers.") for h in hooks):
                raise NotFusable("its layers have hooks")
        children = (*layer.self_attn.named_children(), *layer.mlp.named_children())
        linears = [module for name, module in children if name.endswith("_proj")]
        if not all(is_plain(linear) or _is_packed(linear) for linear in linears):
            raise NotFusable("its weights are adapted")
        # A CPU's kernels round activations to few bits: another order of sums, and a token of the target may change.
        if not all(map(is_plain, linears)) and not _serves_packed(others[0].device.type):
            raise NotFusable("its weights are quantised, and it is not on a GPU")
        biases = [linear.bias is None for linear in linears]
        if not all(biases[3:]) or len(set(biases[:3])) != 1:
            raise NotFusable("its biases are not where Llama's and Qwen2's are")


def _is_packed(module: nn.Module) -> bool:
    """Whether it is a linear layer with a product of its own. One whose weight is in several processes is not."""
    if isinstance(module, PackedLinear):
        return True
    return isinstance(module, nn.Linear) and not is_plain(module) and not hasattr(module.weight, "device_mesh")


def _serves_packed(device: str) -> bool:
    return device == "cuda"


def _served(device: str, dtype: torch.dtype) -> bool:
    return dtype == torch.float32 or (device == "cuda" and dtype in (torch.bfloat16, torch.float16))


@torch.inference_mode()
def _require_equal(decoder: FusedDecoder, model: Any) -> None:
    """Compares both forwards over three tokens, then two. Raises NotFusable if they differ by more than rounding."""
    generator = torch.Generator().manual_seed(0)
    embeds = model.embed_tokens.weight[torch.randint(len(model.embed_tokens.weight), (5,), generator=generator)]
    axes = decoder.axes
    plain, own = (KVCache(model.config, together=True) for _ in range(2))
    tolerance = _TOLERANCE if embeds.dtype == torch.float32 else _HALF_TOLERANCE
    for start, end in ((0, 3), (3, 5)):
        positions = torch.arange(start, end, device=embeds.device).expand(axes, -1)
        theirs = model(
            inputs_embeds=embeds[None, start:end],
            position_ids=positions if axes == 1 else positions[:, None],
            attention_mask=torch.ones(1, end, dtype=torch.bool, device=embeds.device),
            use_cache=True,
            **{cache_argument(model): plain.cache},
        ).last_hidden_state[0]
        mine = decoder.forward(embeds[start:end], decoder.rotary(positions), (own, end - start))
        if not (mine - theirs).float().norm() <= tolerance * theirs.float().norm():
            raise NotFusable("its layers compute something else than Llama's")
