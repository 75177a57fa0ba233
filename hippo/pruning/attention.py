"""Global semantic relevance (HIPPO's s_attn): the question's attention to each video token, recorded during prefill."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from hippo.forward.observe import observing

_QUERIES_AT_ONCE = 256  # bounds the score matrix for long questions


def attention_score(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """One layer's mean attention from text queries to video keys, softmax over the video keys only.

    queries: (H, T, d) after RoPE; keys: (H_kv, V, d) after RoPE, H a multiple of H_kv. Returns (V,) float32, sum 1.
    Source: HIPPO, s_attn.
    """
    heads, count, size = queries.shape
    grouped = queries.reshape(len(keys), heads // len(keys) * count, size)
    total = torch.zeros(keys.shape[1], device=keys.device)
    for block in grouped.split(_QUERIES_AT_ONCE, dim=1):
        scores = torch.matmul(block.float(), keys.float().transpose(1, 2)) * scaling
        total += scores.softmax(dim=-1).sum(dim=(0, 1))
    return total / (heads * count)


def all_layers(layers: int) -> dict[int, float]:
    """Every layer, with equal weights."""
    return dict.fromkeys(range(layers), 1.0)


def early_layers(layers: int) -> dict[int, float]:
    """The first quarter of the layers."""
    return all_layers(max(1, layers // 4))


def outer_layers(layers: int) -> dict[int, float]:
    """The first quarter of the layers with weight 2, and the last half with weight 1."""
    return dict.fromkeys(range(layers - layers // 2, layers), 1.0) | dict.fromkeys(early_layers(layers), 2.0)


@dataclass(frozen=True)
class Attention:
    """What a pruner needs of the target's attention.

    layers: number of layers -> weight of each layer that counts. score: as `attention_score`, of one layer.
    """

    layers: Callable[[int], dict[int, float]] = all_layers
    score: Callable[[Tensor, Tensor, float], Tensor] = attention_score


class AttentionRecorder:
    """Accumulates an attention score over the layers of a prefill. Memory does not grow with their number.

    text_at, video_at: prompt indices of the T text queries and V video keys. layers: how many the model has.
    on_ready: called after the last layer that counts, which may be before the prefill ends.
    """

    def __init__(
        self,
        text_at: Tensor,
        video_at: Tensor,
        attention: Attention,
        layers: int,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.text_at, self.video_at = text_at, video_at
        self._score, self._weights, self._on_ready = attention.score, attention.layers(layers), on_ready
        self._total: Tensor | None = None
        self.seconds = 0.0

    def record(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Add one layer. query: (1, H, n, d) of the last n of the L keys; key: (1, H_kv, L, d). Forwards that end
        before the question are ignored; the one that reaches its end must hold all of it."""
        begin = key.shape[2] - query.shape[2]
        if layer not in self._weights or key.shape[2] <= self.text_at[-1]:
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
        """(V,) float32, the weighted mean over the layers."""
        assert self._total is not None
        return self._total / sum(self._weights.values())


def recording(*recorders: AttentionRecorder) -> AbstractContextManager[None]:
    """While open, `recorders` record the attention of every language model layer that this thread runs. Models and
    other threads are unaffected."""
    return observing(*(recorder.record for recorder in recorders))
