"""Qwen2-VL: like Qwen2.5-VL, but time counts frames and not seconds."""

from __future__ import annotations

from hippo.families.base import Card, Released
from hippo.families.qwen2_5_vl import Qwen2_5VL

_DRAFT = Released("Qwen/Qwen2-VL-2B-Instruct", 2.21)


class Qwen2VL(Qwen2_5VL):
    model_types: tuple[str, ...] = ("qwen2_vl",)
    card = Card(
        "Qwen2-VL",
        (
            (Released("Qwen/Qwen2-VL-7B-Instruct", 8.29), _DRAFT),
            (Released("Qwen/Qwen2-VL-72B-Instruct", 73.41), _DRAFT),
        ),
        ("its positions count frames, not seconds", "images are never pruned"),
    )
