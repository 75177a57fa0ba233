"""Two models that see alike: when draft and target have the same vision tower, the target's looking serves both, and
the draft gets the few rows it keeps instead of all pixels. A pair made for each other has that, and a model that drafts
for itself. Our choice."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn

from hippo.families import Embeds, Family, Prompt

_SAMPLES = 64  # values looked at of each tensor


def eyes_of(family: Family, model: Any) -> str:
    """A fingerprint of all that makes video tokens of pixels: the model's type and everything but its text stack, head
    and embedding. Of each tensor its shape and some values count; were two models taken for alike that are not, the
    target would only accept less."""
    words = [family.language_model(model), model.get_output_embeddings(), model.get_input_embeddings()]
    others = {id(tensor) for module in words for tensor in _tensors(module)}
    digest = blake2b(model.config.model_type.encode(), digest_size=16)
    for tensor in _tensors(model):
        if id(tensor) not in others:
            for part in _unpacked(tensor.detach()):
                values = part.flatten()
                at = torch.linspace(0, len(values) - 1, min(_SAMPLES, len(values)), device=values.device).long()
                digest.update(str(tuple(tensor.shape)).encode() + values[at].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _unpacked(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a quantised one is made of, which may not know how to be flattened; one is its own."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [tensor] if flatten is None else [part for name in flatten()[0] for part in _unpacked(getattr(tensor, name))]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def seen(prompt: Prompt, embeds: Embeds, kept: Tensor, words: nn.Module) -> dict[str, Tensor]:
    """What a draft with the target's eyes needs to know of a prompt of which it sees the video tokens `kept`: the
    tensors of a `Read` record. words: the target's lookup of token ids; what differs from it has been seen."""
    stays = prompt.keep(kept).to(prompt.input_ids.device)
    ids, rows = prompt.input_ids[stays], embeds.tokens[stays]
    at = (rows != words(ids)).any(dim=-1).nonzero()[:, 0]
    return {
        "ids": ids,
        "positions": prompt.positions[:, stays],
        "next_position": prompt.next_position,
        "at": at,
        "rows": rows[at],
    }
