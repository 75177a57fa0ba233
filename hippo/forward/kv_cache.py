"""A KV cache that appends in place and rolls back by moving a length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_SPARE = 256  # tokens of room beyond what is asked for, so that growing is rare


class RoomyLayer(DynamicLayer):
    """One layer. transformers' own copies all keys and values whenever a token is appended; this one writes them into a
    buffer with room to spare. keys, values: (1, H_kv, length, d) views of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._length = 0
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (1, H_kv, n, d) keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._length + key_states.shape[-2]
        if self._room is None or end > self._room[0].shape[-2]:
            self._room = (self._roomier(0, key_states, end), self._roomier(1, value_states, end))
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[..., self._length : end, :] = states
        return self._show(end)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; a negative count, as transformers has it."""
        if tokens_to_remove > 0:
            raise ValueError("crop takes a negative count")
        self._show(max(0, self._length + tokens_to_remove))

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self._length

    def _roomier(self, which: int, states: Tensor, end: int) -> Tensor:
        roomy = torch.empty(
            *states.shape[:-2], end + _SPARE, states.shape[-1], dtype=states.dtype, device=states.device
        )
        if self._room is not None:
            roomy[..., : self._length, :] = self._room[which][..., : self._length, :]
        return roomy

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self._room is not None
        self._length = length
        self.keys, self.values = keys, values = self._room[0][..., :length, :], self._room[1][..., :length, :]
        return keys, values


def make_cache(config: Any) -> DynamicCache:
    """An empty cache for a text config. Layers that transformers gives a kind of their own (sliding windows, linear
    attention) keep it, and record what a rollback needs."""
    cache = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = RoomyLayer()
        elif hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    return cache
