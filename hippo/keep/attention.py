"""Global semantic relevance: how much the question looks at each video token (HIPPO's s_attn)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_PREFIX = "hippo_listening_"
_QUERIES_AT_ONCE = 256  # bounds the score matrix, whatever the length of the question


def attention_score(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """One layer's mean attention from text queries to video keys, softmax over the video keys only.

    queries: (H, T, d) after RoPE; keys: (H_kv, V, d) after RoPE, H a multiple of H_kv. Returns (V,) float32, sum 1.
    Source: HIPPO, s_attn as summarised; Q and K after RoPE and grouped heads expanded are our choice.
    """
    heads, count, size = queries.shape
    grouped = queries.reshape(len(keys), heads // len(keys) * count, size)
    total = torch.zeros(keys.shape[1], device=keys.device)
    for block in grouped.split(_QUERIES_AT_ONCE, dim=1):
        scores = torch.matmul(block.float(), keys.float().transpose(1, 2)) * scaling
        total += scores.softmax(dim=-1).sum(dim=(0, 1))
    return total / (heads * count)


def debiased_attention_score(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """`attention_score` of the later queries less that of the first, which stands before the question and cannot know
    it: what it looks at, places draw whatever is asked. Shapes as there; sums to 0. Our choice."""
    if queries.shape[1] < 2:
        return torch.zeros(keys.shape[1], device=keys.device)
    return attention_score(queries[:, 1:], keys, scaling) - attention_score(queries[:, :1], keys, scaling)


def every(layers: int) -> dict[int, float]:
    """All layers, each as much as another."""
    return dict.fromkeys(range(layers), 1.0)


def early(layers: int) -> dict[int, float]:
    """The first quarter of the layers."""
    return every(max(1, layers // 4))


def outer(layers: int) -> dict[int, float]:
    """The first quarter of the layers, which counts twice, and the last half: the second quarter looks less at what a
    draft needs (our choice, measured)."""
    return dict.fromkeys(range(layers - layers // 2, layers), 1.0) | dict.fromkeys(early(layers), 2.0)


# What is measured of a layer's attention, and what each of so many layers counts; those that are not named do not.
SCORES: dict[str, tuple[Callable[[Tensor, Tensor, float], Tensor], Callable[[int], dict[int, float]]]] = {
    "outer": (attention_score, outer),
    "all": (attention_score, every),
    "early": (attention_score, early),
    "debiased": (debiased_attention_score, every),
}


class Listener:
    """Collects a score of attention over the layers of a prefill; memory does not grow with their number.

    text_at, video_at: prompt indices of the T text queries and V video keys. kind: one of SCORES. layers: how many the
    model has. on_ready: called once the last layer that counts was heard, which for "early" is before the prefill ends.
    """

    def __init__(
        self,
        text_at: Tensor,
        video_at: Tensor,
        kind: str,
        layers: int,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.text_at, self.video_at = text_at, video_at
        self._score, weights = SCORES[kind]
        self._weights, self._on_ready = weights(layers), on_ready
        self._total: Tensor | None = None
        self._heard = 0
        self.seconds = 0.0

    def hear(self, query: Tensor, key: Tensor, scaling: float) -> None:
        """Add one layer. query: (1, H, n, d), key: (1, H_kv, L, d), the queries being those of the last n keys.
        Forwards that end before the question are not for us; one that begins within it would be a mistake."""
        begin = key.shape[2] - query.shape[2]
        if key.shape[2] <= self.text_at[-1]:
            return
        layer, self._heard = self._heard, self._heard + 1
        if layer not in self._weights:
            return
        began = time.perf_counter()
        assert begin <= self.text_at[0]
        score = self._weights[layer] * self._score(
            query[0][:, (self.text_at - begin).to(query.device)], key[0][:, self.video_at.to(key.device)], scaling
        )
        self._total = score if self._total is None else self._total + score.to(self._total.device)
        self.seconds += time.perf_counter() - began
        if layer == max(self._weights):
            self._on_ready()

    @property
    def scores(self) -> Tensor:
        """(V,) float32, the mean over the layers, as each counts."""
        assert self._total is not None
        return self._total / sum(self._weights.values())


@contextmanager
def listening(language_model: nn.Module, *listeners: Listener) -> Iterator[None]:
    """While open, every layer's attention is also heard by `listeners`; the attention itself is unchanged."""
    if not listeners:
        yield
        return
    config: Any = language_model.config
    plain = config._attn_implementation
    name = _PREFIX + plain
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _hearing(plain))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[plain])
    for layer in language_model.modules():
        if hasattr(layer, "layer_idx"):
            layer.__dict__["_hippo_listeners"] = listeners
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = plain
        for layer in language_model.modules():
            layer.__dict__.pop("_hippo_listeners", None)


def _hearing(plain: str) -> Any:
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        for listener in module.__dict__.get("_hippo_listeners", ()):
            listener.hear(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        return ALL_ATTENTION_FUNCTIONS.get_interface(plain, eager)(module, query, key, value, mask, **kwargs)

    return attend
