"""A text model with its KV cache and positions: prefill once, extend by a few tokens, roll back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hippo.clock import clock
from hippo.families import Family
from hippo.kv_cache import make_cache


class CachedModel:
    """One request's view of a language model. Positions are kept here, per request, never on the shared module.

    language_model: inputs_embeds, position_ids, attention_mask, past_key_values -> last_hidden_state.
    head: hidden states -> logits. lookup: token ids -> input embeddings.
    """

    def __init__(self, language_model: Any, head: nn.Module, lookup: nn.Module) -> None:
        self._language_model, self._head, self._lookup = language_model, head, lookup
        self._cache = make_cache(language_model.config)
        self._first = 0
        self._next: Tensor = torch.zeros(1, dtype=torch.long)
        self.forwards = 0
        self.seconds = 0.0  # the last extend took this long

    @classmethod
    def of(cls, family: Family, model: Any) -> CachedModel:
        """A fresh one for a model of a family."""
        return cls(family.language_model(model), model.get_output_embeddings(), model.get_input_embeddings())

    @torch.inference_mode()
    def prefill(self, embeds: Tensor, positions: Tensor, next_position: Tensor) -> Tensor:
        """Read a prompt. embeds: (L, D); positions: (axes, L); next_position: (axes,). Returns (vocabulary,) logits."""
        self._next = next_position
        self._first = len(embeds)
        return self._forward(embeds, positions, last_only=True)[0]

    @torch.inference_mode()
    def extend(self, ids: Sequence[int]) -> Tensor:
        """Append n generated tokens. Returns (n, vocabulary) logits, row i for the token after ids[i]."""
        device = self._next.device
        began = clock(device)
        offsets = torch.arange(len(ids), device=device) + (self.length - self._first)
        embeds = self._lookup(torch.tensor(ids, device=device))
        logits = self._forward(embeds, self._next[:, None] + offsets)
        self.forwards += 1
        self.seconds = clock(device) - began
        return logits

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens."""
        if count:
            self._cache.crop(-count)

    @property
    def length(self) -> int:
        """Tokens in the cache, prompt included."""
        return self._cache.get_seq_length()

    def _forward(self, embeds: Tensor, positions: Tensor, last_only: bool = False) -> Tensor:
        # An explicit mask of ones: without one, transformers would read the gaps that pruning leaves in the positions
        # as borders between packed sequences.
        seen = torch.ones(1, self.length + len(embeds), dtype=torch.bool, device=embeds.device)
        hidden = self._language_model(
            inputs_embeds=embeds[None],
            position_ids=positions if len(positions) == 1 else positions[:, None],
            attention_mask=seen,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state[0]
        return self._head(hidden[-1:] if last_only else hidden)
