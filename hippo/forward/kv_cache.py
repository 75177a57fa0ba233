"""A KV cache that appends in place and rolls back by moving a length."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_SPARE = 256  # tokens of room beyond what is needed, so that growing is rare


class Window(NamedTuple):
    """The keys and values that a forward over n new tokens writes and reads, for each layer.

    slots: for the new keys and values, (2, H_kv, n, d). keys, values: all, (H_kv, length, d), the new ones included.
    """

    slots: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    def write(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values, (2, H_kv, n, d). Returns all keys and all values."""
        self.slots[layer].copy_(new)
        return self.keys[layer], self.values[layer]

    def mask(self, like: Tensor) -> Tensor:
        """(n, length) causal mask: minus infinity for later tokens, else 0; (1, 1) if there is one new token."""
        count, length = self.slots[0].shape[-2], self.keys[0].shape[-2]
        if count == 1:
            return like.new_zeros(1, 1)
        mask = like.new_zeros(count, length)
        mask[:, length - count :] = like.new_full((count, count), float("-inf")).triu_(1)
        return mask


class FixedWindow:
    """A window over a whole room, with fixed addresses and shapes: only the values of `at`, the (n,) cache positions of
    the new tokens, change between forwards. room: (layers, 2, H_kv, capacity, d)."""

    def __init__(self, room: Tensor, at: Tensor) -> None:
        self._room, self._at = room, at

    def write(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """See Window."""
        keys, values = self._room[layer].index_copy_(2, self._at, new)
        return keys, values

    def mask(self, like: Tensor) -> Tensor:
        """See Window; (n, capacity), unused room is masked too."""
        later = torch.arange(self._room.shape[-2], device=like.device) > self._at[:, None]
        return like.new_zeros(later.shape).masked_fill(later, float("-inf"))


class Room:
    """One buffer for the keys and values of some layers, written in place; transformers' own cache copies everything
    whenever a token is appended. clear: start with zeros."""

    def __init__(self, layers: int, spare: int = _SPARE, clear: bool = False) -> None:
        self._layers, self._spare = layers, spare
        self._make = torch.zeros if clear else torch.empty
        self.tensor: Tensor | None = None  # (layers, 2, H_kv, capacity, d), once there is one
        self.expected = 0  # tokens that are known to come
        self.whole = False  # whether forwards see all of it, what is not written yet included: a mask hides that

    @property
    def size(self) -> int:
        """Bytes held."""
        return 0 if self.tensor is None else self.tensor.nbytes

    def clear(self) -> None:
        """Fill it with zeros: what an earlier request wrote is masked, but a NaN or an infinity stays one under a
        mask."""
        if self.tensor is not None:
            self.tensor.zero_()

    def holding(self, end: int, like: Tensor) -> Tensor:
        """The buffer, (layers, 2, H_kv, capacity, d), with room for `end` tokens of keys `like` (1, H_kv, n, d)."""
        if self.tensor is None or end > self.tensor.shape[-2]:
            old = self.tensor
            capacity = max(end, self.expected) + self._spare
            shape = self._layers, 2, like.shape[1], capacity, like.shape[-1]
            self.tensor = self._make(shape, dtype=like.dtype, device=like.device)
            if old is not None:
                self.tensor[..., : old.shape[-2], :] = old
        return self.tensor


class RoomyLayer(DynamicLayer):
    """One layer of a room, as transformers' models see it."""

    def __init__(self, room: Room, index: int) -> None:
        super().__init__()
        self._room, self._index = room, index
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (1, H_kv, n, d) keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[-2]
        keys, values = self._room.holding(end, key_states)[self._index]
        keys[:, start:end], values[:, start:end] = key_states[0], value_states[0]
        self.length = end
        return (keys[None], values[None]) if self._room.whole else (keys[None, :, :end], values[None, :, :end])

    def begin(self, length: int, like: Tensor) -> None:
        """The room holds `length` tokens already. like: (1, H_kv, n, d)."""
        self.lazy_initialization(like, like)
        self.length = length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; a negative count, as transformers has it."""
        if tokens_to_remove > 0:
            raise ValueError("crop takes a negative count")
        self.length = max(0, self.length + tokens_to_remove)

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length


class KVCache:
    """The keys and values of one request.

    config: the text model's. together: whether all layers are on one device and share one room. spare: tokens of room
    beyond those expected. room: an existing one to use. clear: start with zeros. Layers with a cache type of their own
    (sliding windows, linear attention) keep it, and record what rollbacks need.
    """

    def __init__(
        self, config: Any, together: bool, spare: int = _SPARE, room: Room | None = None, clear: bool = False
    ) -> None:
        self.cache = DynamicCache(config=config)  # what transformers' forward is given
        layers: list[Any] = self.cache.layers
        self._room = room or (Room(len(layers), spare, clear) if together else None)
        self._rooms: list[Room] = []
        for index, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                self._rooms.append(self._room or Room(1, spare, clear))
                layers[index] = RoomyLayer(self._rooms[-1], index if self._room else 0)
            elif hasattr(layer, "activate_past_recording"):
                layer.activate_past_recording()

    @property
    def full_attention(self) -> bool:
        """Whether all layers keep every token, in one room."""
        return self._room is not None and len(self._rooms) == len(self.cache.layers)

    @property
    def length(self) -> int:
        """Tokens held."""
        return self.cache.get_seq_length()

    @property
    def size(self) -> int:
        """Bytes held, the room for more included."""
        return sum(room.size for room in dict.fromkeys(self._rooms))

    @property
    def tensor(self) -> Tensor | None:
        """The room of all layers, (layers, 2, H_kv, capacity, d), if every layer keeps every token in it."""
        return self._room.tensor if self._room is not None and self.full_attention else None

    def load(self, known: Tensor) -> None:
        """Begin with the keys and values of `known`, (layers, 2, H_kv, n, d)."""
        assert self._room is not None
        count = known.shape[-2]
        self._room.holding(count, known[0, :1])[..., :count, :] = known
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.begin(count, known[0, :1])

    def expect(self, tokens: int) -> None:
        """Allocate room for `tokens` tokens with the first write; growing later holds everything twice for a moment."""
        for room in self._rooms:
            room.expected = tokens

    def show_whole(self) -> int:
        """From now on forwards see whole rooms. Returns the tokens that they hold, 0 if some layers have none."""
        if len(self._rooms) < len(self.cache.layers):
            return 0
        for room in self._rooms:
            room.whole = True
        tensor = self._rooms[0].tensor
        return 0 if tensor is None else tensor.shape[-2]

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens."""
        if count:
            self.cache.crop(-count)

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`. After a forward that failed, some layers have more."""
        layers: list[Any] = self.cache.layers
        for layer in layers:
            if (more := layer.get_seq_length() - length) > 0:
                layer.crop(-more)

    def append(self, count: int, like: Tensor) -> Window:
        """Make all layers `count` tokens longer at once; needs `together`. like: (1, H_kv, n, d)."""
        assert self._room is not None
        start, end = self.length, self.length + count
        room = self._room.holding(end, like)
        self.lengthen(count)
        return Window(room[..., start:end, :].unbind(0), room[:, 0, :, :end].unbind(0), room[:, 1, :, :end].unbind(0))

    def lengthen(self, count: int) -> None:
        """As `append`, for callers that write into the room themselves."""
        end = self.length + count
        layers: list[Any] = self.cache.layers
        for layer in layers:
            layer.length = end


class PassedOn:
    """Stands for a cache where the attention function writes keys and values itself."""

    class _Cache(DynamicCache):
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return key_states, value_states

    def __init__(self) -> None:
        self.cache = self._Cache()


def cache_argument(language_model: Any) -> str:
    """The argument of a text model's forward that takes the cache. transformers 5.24 renamed it."""
    return _argument_name(type(language_model).forward)


@cache
def _argument_name(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
