"""Attention functions to be used in place of a model's own, see `hippo.forward.observe.wrapping`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from hippo.forward.kv_cache import KVCache
from hippo.forward.observe import Attend


def attending_apart(kvs: Sequence[tuple[KVCache, int]]) -> Callable[[Attend], Attend]:
    """Wraps an attention function, so that the new tokens of a forward attend to the keys and values of their own
    request. kvs: of each request its cache, and how many of the new tokens are its own."""

    def wrapper(attend: Attend) -> Attend:
        def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, **kwargs: Any) -> Any:
            outputs = []
            for rows, keys, values in _of_each(kvs, key, value, module.layer_idx):
                count = rows.stop - rows.start
                mask = query.new_full((count, count), float("-inf")).triu(1) if count > 1 else None
                mask = None if mask is None else F.pad(mask, (keys.shape[-2] - count, 0))[None, None]
                outputs.append(attend(module, query[:, :, rows], keys, values, mask, **kwargs)[0])
            return torch.cat(outputs, dim=1), None

        return attention

    return wrapper


def attending_by_token(kvs: Sequence[tuple[KVCache, int]]) -> Callable[[Attend], Attend]:
    """As `attending_apart`, with torch's own attention for one token at a time: its shapes, and so the order in which
    it adds up, do not depend on the tokens around it. The heads that share keys and values are the rows of one product,
    so that neither is repeated. Further tokens in the forward, which fill it up, get what the last one does."""

    def wrapper(attend: Attend) -> Attend:
        def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, **kwargs: Any) -> Any:
            grouped = query[0].unflatten(0, (key.shape[1], -1)).permute(2, 0, 1, 3)  # (n, H_kv, groups, d)
            outputs = []
            for rows, keys, values in _of_each(kvs, key, value, module.layer_idx):
                for row in range(rows.start, rows.stop):
                    seen = slice(keys.shape[-2] - (rows.stop - row) + 1)
                    one = grouped[row, None], keys[:, :, seen], values[:, :, seen]
                    outputs.append(F.scaled_dot_product_attention(*one, scale=kwargs.get("scaling")))
            outputs += outputs[-1:] * (query.shape[2] - len(outputs))
            return torch.cat(outputs).flatten(1, 2)[None], None

        return attention

    return wrapper


def _of_each(
    kvs: Sequence[tuple[KVCache, int]], key: Tensor, value: Tensor, layer: int
) -> list[tuple[slice, Tensor, Tensor]]:
    """Of each request the rows of its new tokens, and all its keys and values, to which theirs are appended."""
    parts, begin = [], 0
    for kv, count in kvs:
        rows = slice(begin, begin + count)
        parts.append((rows, *kv.cache.update(key[:, :, rows], value[:, :, rows], layer)))
        begin += count
    return parts


def without_mask(attend: Attend) -> Attend:
    """Wraps transformers' "sdpa", so that a later part of a prompt is read by a flash kernel where there is one: the
    mask that it is given is causal, but only a kernel that knows so need not read it, nor repeat keys and values."""

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        if query.shape[2] == 1 or not _has_flash(query, key, value):
            return attend(module, query, key, value, mask, **kwargs)
        causal = causal_lower_right(query.shape[2], key.shape[2])
        grouped = query.shape[1] != key.shape[1]
        scaling = kwargs.get("scaling")
        output = F.scaled_dot_product_attention(query, key, value, causal, scale=scaling, enable_gqa=grouped)
        return output.transpose(1, 2).contiguous(), None

    return attention


def _has_flash(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if not query.is_cuda:
        return False
    grouped = query.shape[1] != key.shape[1]
    cuda = torch.backends.cuda
    return cuda.can_use_flash_attention(cuda.SDPAParams(query, key, value, None, 0.0, False, grouped))
