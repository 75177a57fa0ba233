"""A text model with its KV cache and positions: prefill once, extend by a few tokens, roll back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hippo.clock import clock
from hippo.families import Embeds, Family, Prompt
from hippo.forward.fused import FusedDecoder, fused
from hippo.forward.kv_cache import KVCache
from hippo.forward.recorded import RUN, Recorded, recorded_for, records
from hippo.products import fast_products

_MOST_SPARE = 4096  # tokens of room made in advance, whatever the longest answer may be
_WHOLE = 8192 * 18944  # tokens times the MLP's width that one forward reads, as generate() does: 8192 of a 7B model's
_PART = 2048  # tokens of a longer prompt, which bounds what a forward holds, and takes longer
_FEW = 512  # tokens of a prompt that the short forward reads; it holds the attention of all to all
_TABLE = 512  # positions whose cosines and sines are computed at a time


class CachedModel:
    """One request's view of a language model. Positions are kept here, per request, never on the shared module.

    language_model: inputs_embeds, position_ids, attention_mask, past_key_values -> last_hidden_state.
    head: hidden states -> logits. lookup: token ids -> input embeddings. may_fuse: false for transformers' own forward.
    spare: tokens that are likely to follow the prompt.
    """

    def __init__(
        self, language_model: Any, head: nn.Module, lookup: nn.Module, may_fuse: bool = True, spare: int = 256
    ) -> None:
        self._language_model, self._head, self._lookup = language_model, head, lookup
        self._may_fuse = may_fuse
        config = language_model.config
        self._width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        self._fused: FusedDecoder | None = None
        devices = {parameter.device for parameter in language_model.parameters()}
        self._together, self._spare = len(devices) == 1, min(spare, _MOST_SPARE)
        self._kv = KVCache(config, self._together, self._spare)
        self._recorded: Recorded | None = None
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._first = 0
        self._next: Tensor = torch.zeros(1, dtype=torch.long)
        self.forwards = 0
        self.seconds = 0.0  # the last extend took this long

    @classmethod
    def of(cls, family: Family, model: Any, may_fuse: bool = True, spare: int = 256) -> CachedModel:
        """A fresh one for a model of a family."""
        head, lookup = model.get_output_embeddings(), model.get_input_embeddings()
        return cls(family.language_model(model), head, lookup, may_fuse, spare)

    def read(self, embeds: Embeds, prompt: Prompt, progress: Callable[[str, float], None] | None = None) -> Tensor:
        """Read a whole prompt, its question by one forward, which can be listened to. Returns (vocabulary,) logits."""
        question = len(embeds) - int(prompt.question_at[0]) if len(prompt.video_at) else 1
        return self.prefill(embeds, prompt.positions, prompt.next_position, question, progress)

    @torch.inference_mode()
    def prefill(
        self,
        embeds: Embeds,
        positions: Tensor,
        next_position: Tensor,
        question: int = 1,
        progress: Callable[[str, float], None] | None = None,
    ) -> Tensor:
        """Read a prompt of L tokens. positions: (axes, L); next_position: (axes,). question: so many tokens at its end
        are read by one forward. progress: called with a phase and its share, if the prompt is long. Returns
        (vocabulary,) logits."""
        self._begin(len(embeds), next_position)
        for part in prefill_parts(self._first, question, self._width):
            with _told(progress if self._first > _PART else None, self._language_model, part, self._first):
                logits = self._forward(embeds[part], positions[:, part], last_only=True)
        return logits[0]

    @torch.inference_mode()
    def prefill_few(self, embeds: Embeds, positions: Tensor, next_position: Tensor) -> Tensor:
        """As `prefill`, by the fused forward if there is one and they are few: what a draft keeps of a prompt."""
        if self._may_fuse and len(embeds) <= _FEW and not embeds.arguments:
            self._fused = fused(self._language_model)
        if self._fused is None:
            return self.prefill(embeds, positions, next_position)
        self._begin(len(embeds), next_position)
        return self._head(self._fused.forward(embeds.tokens, self._fused.rotary(positions), self._kv)[-1:])[0]

    def _begin(self, first: int, next_position: Tensor) -> None:
        """A prompt of so many tokens is about to be read."""
        self._next, self._first = next_position, first
        if self._may_fuse and self._together and records(next_position.device):
            self._fused = fused(self._language_model)
            if self._fused is not None:
                config, tokens = self._language_model.config, first + self._spare + RUN
                self._recorded = recorded_for(self, self._fused, self._lookup, self._head, tokens)
                self._recorded.begin(first, next_position)
                self._kv = KVCache(config, True, room=self._recorded.room)
                return
        self._kv.expect(first)

    @torch.inference_mode()
    def extend(self, ids: Sequence[int]) -> Tensor:
        """Append n generated tokens. Returns (n, vocabulary) logits, row i for the token after ids[i]."""
        device = self._next.device
        began = clock(device)
        recording = 0.0
        if self._recorded is not None and self._recorded.holds(self.length, len(ids)):
            logits = self._recorded.extend(ids, self.length)
            self._kv.lengthen(len(ids))
            recording = self._recorded.recording
        else:
            logits = self._extend(ids)
        self.forwards += 1
        self.seconds = clock(device) - began - recording  # which is not what forwards cost
        return logits

    @torch.inference_mode()
    def draft(self, ids: Sequence[int], count: int, limit: int) -> list[tuple[int, float]]:
        """Append `ids`, and after them one by one the likeliest tokens, which are returned with their probabilities: up
        to `count` of them, one at least. All but the last are then in the cache. limit: ids from here on are not
        taken."""
        if self._recorded is None or count < RUN or not self._recorded.holds(self.length + len(ids) - 1, RUN):
            sure, token = (number.item() for number in self.extend(ids)[-1, :limit].float().softmax(-1).max(-1))
            return [(int(token), sure)]
        if len(ids) > 1:
            self.extend(ids[:-1])
        tokens, chances = self._recorded.draft(ids[-1], self.length, limit)
        self._kv.lengthen(RUN)
        self.forwards += RUN
        return list(zip(tokens, chances, strict=True))

    def _extend(self, ids: Sequence[int]) -> Tensor:
        """`extend`, operation by operation."""
        device, begin = self._next.device, self.length - self._first
        embeds = self._lookup(torch.tensor(ids, device=device))
        if begin == 0 and self._may_fuse and self._fused is None:
            self._fused = fused(self._language_model)
        if self._fused is not None:
            hidden = self._fused.forward(embeds, self._rotary_at(begin, begin + len(ids)), self._kv)
            with fast_products(hidden, len(hidden)):
                return self._head(hidden)
        positions = self._next[:, None] + torch.arange(begin, begin + len(ids), device=device)
        return self._forward(Embeds(embeds), positions)

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self._kv.rollback(count)

    @property
    def size(self) -> int:
        """Bytes that the keys and values take, with the room made for more."""
        return self._kv.size

    @property
    def length(self) -> int:
        """Tokens in the cache, prompt included."""
        return self._kv.length

    def _rotary_at(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the generated tokens begin..end-1, from a table that grows as the answer does."""
        assert self._fused is not None
        if self._rotary is None or end > len(self._rotary[0]):
            places = torch.arange(-(-end // _TABLE) * _TABLE, device=self._next.device)
            self._rotary = self._fused.rotary(self._next[:, None] + places)
        cos, sin = self._rotary
        return cos[begin:end], sin[begin:end]

    def _forward(self, embeds: Embeds, positions: Tensor, last_only: bool = False) -> Tensor:
        # An explicit mask of ones: without one, transformers would read the gaps that pruning leaves in the positions
        # as borders between packed sequences.
        seen = torch.ones(1, self.length + len(embeds), dtype=torch.bool, device=embeds.tokens.device)
        with fast_products(embeds.tokens, len(embeds)):
            hidden = self._language_model(
                inputs_embeds=embeds.tokens[None],
                position_ids=positions if len(positions) == 1 else positions[:, None],
                attention_mask=seen,
                past_key_values=self._kv.cache,
                use_cache=True,
                **embeds.arguments,
            ).last_hidden_state[0]
            return self._head(hidden[-1:] if last_only else hidden)


@contextmanager
def _told(progress: Callable[[str, float], None] | None, model: Any, part: slice, length: int) -> Iterator[None]:
    """Inside, progress is told after each layer of a forward over a part of a prompt of `length` tokens."""
    layers = list(getattr(model, "layers", [])) if progress else []

    def tell(done: int) -> None:
        assert progress is not None
        progress("reading the prompt", (part.start + (part.stop - part.start) * done / len(layers)) / length)

    hooks = [layer.register_forward_hook(lambda *_, done=done: tell(done)) for done, layer in enumerate(layers, 1)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def prefill_parts(length: int, question: int, width: int) -> list[slice]:
    """The forwards that read a prompt: one, or several if it is long for a model whose MLP is so wide, the last with
    the `question` tokens at the end or more."""
    if length * width <= _WHOLE:
        return [slice(0, length)]
    last = length - max(_PART, question)
    return [*(slice(begin, min(begin + _PART, last)) for begin in range(0, last, _PART)), slice(max(0, last), length)]
