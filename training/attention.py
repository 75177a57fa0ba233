"""Attention for training on a CPU: plain batched matrix products. The flash kernels' backward pass is several times
slower there at these sizes, worst in bfloat16. The trained weights do not know the difference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

# Called flash so that the vision tower hands over all its windows in one call.
VISION, TEXT = "flash_equal_windows", "plain_batched"


def _windows(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
    """q, k, v: (1, H, N, d), N = windows of equal size. Returns (1, N, H, d)."""
    count = len(kwargs["cu_seq_lens_q"]) - 1
    _, heads, total, size = q.shape
    q, k, v = (x[0].view(heads, count, total // count, size).transpose(0, 1) for x in (q, k, v))
    mixed = ((q @ k.transpose(-1, -2)) * kwargs["scaling"]).softmax(-1).to(v.dtype) @ v
    return mixed.permute(0, 2, 1, 3).reshape(1, total, heads, size), None


def _batched(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
    """q: (B, H, L, d); k, v: (B, H_kv, L, d); mask: (B, 1, L, L) bool. Returns (B, L, H, d)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-1, -2)) * kwargs["scaling"]
    bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    mixed = (scores + bias).softmax(-1).to(v.dtype) @ v
    return mixed.transpose(1, 2).contiguous(), None


def use_training_attention(model: nn.Module) -> None:
    """Make a Qwen2.5-VL model train with the attention above."""
    for name, function in ((VISION, _windows), (TEXT, _batched)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
    model.model.visual.config._attn_implementation = VISION
    model.model.language_model.config._attn_implementation = TEXT
