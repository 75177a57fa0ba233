"""Qwen2-VL: like Qwen2.5-VL, but time counts frames and not seconds."""

from __future__ import annotations

from hippo.families.qwen2_5_vl import Qwen2_5VL


class Qwen2VL(Qwen2_5VL):
    model_types: tuple[str, ...] = ("qwen2_vl",)
