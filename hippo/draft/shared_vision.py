"""Draft and target with the same vision tower: the target encodes the video for both, and the draft is sent the few
embeddings that it keeps instead of all pixels."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hippo.families import Embeds, Family, Prompt

_SAMPLES = 64  # values of each tensor
_known: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()  # what it was computed for, fingerprint


def vision_fingerprint(family: Family, model: Any) -> str:
    """A fingerprint of everything that makes video tokens of pixels: the model's type and all weights but those of its
    text stack, head and token embeddings. Of each tensor the shape and some values count. If two towers that differ had
    one fingerprint, the target would only accept less."""
    text = [family.language_model(model), model.get_output_embeddings(), model.get_input_embeddings()]
    tensors = list(_tensors(model, text))
    state = [(id(one), one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors]
    if model not in _known or _known[model][0] != state:
        digest = blake2b(model.config.model_type.encode(), digest_size=16)
        for tensor in tensors:
            for part in _parts(tensor.detach()):
                values = part.flatten()
                count = min(_SAMPLES, len(values))
                at = torch.arange(count, device=values.device) * (len(values) - 1) // max(1, count - 1)
                digest.update(str(tuple(tensor.shape)).encode() + values[at].float().cpu().numpy().tobytes())
        _known[model] = state, digest.hexdigest()
    return _known[model][1]


def _parts(tensor: Tensor) -> list[Tensor]:
    """The plain tensors that a quantised one is made of, which may not know how to be flattened; one is its own."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [tensor] if flatten is None else [part for name in flatten()[0] for part in _parts(getattr(tensor, name))]


def _tensors(module: nn.Module, without: list[nn.Module]) -> Iterator[Tensor]:
    """The weights and buffers of a module, those of some of its parts left out."""
    if not any(module is part for part in without):
        own = (*module._parameters.values(), *module._buffers.values())
        yield from (tensor for tensor in own if tensor is not None)
        for child in module.children():
            yield from _tensors(child, without)


def kept_prompt(prompt: Prompt, embeds: Embeds, kept: Tensor, lookup: nn.Module) -> dict[str, Tensor]:
    """A prompt as a draft with the target's vision tower reads it, with L tokens of which n are not text.

    kept: (K,) indices of the video tokens that the draft sees. lookup: the target's, from token ids to embeddings.
    Returns ids (L,), positions (axes, L) and next_position (axes,) as in `Prompt`, and for the tokens whose embedding
    is not their id's, at (n,), which they are, and rows (n, D), their embeddings.
    """
    stays = prompt.keep(kept).to(prompt.input_ids.device)
    ids, rows = prompt.input_ids[stays], embeds.tokens[stays]
    at = (rows != lookup(ids)).any(dim=-1).nonzero()[:, 0]
    return {
        "ids": ids,
        "positions": prompt.positions[:, stays],
        "next_position": prompt.next_position,
        "at": at,
        "rows": rows[at],
    }
