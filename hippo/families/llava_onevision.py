"""LLaVA-OneVision: plain one-dimensional positions, frames pooled to a square grid, one newline after each video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hippo.families.base import (
    Card,
    Embeds,
    Family,
    Prompt,
    Released,
    VideoGrid,
    embedded,
    one_request,
    plain_prompt,
    require_video_tokens,
    vision_chunks,
)

_DRAFT = Released("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 0.89)


class LlavaOnevision(Family):
    model_types: tuple[str, ...] = ("llava_onevision",)
    card = Card(
        "LLaVA-OneVision",
        (
            (Released("llava-hf/llava-onevision-qwen2-7b-ov-hf", 8.03), _DRAFT),
            (Released("llava-hf/llava-onevision-qwen2-72b-ov-hf", 73.18), _DRAFT),
        ),
        ("images, and the newline after each video, are never pruned",),
    )
    media_inputs = (*Family.media_inputs, "image_sizes", "batch_num_images")

    def prepare_prompt(self, config: Any, inputs: Mapping[str, Any]) -> Prompt:
        input_ids, tokens = one_request(inputs, config.video_token_id)
        pixels = inputs.get("pixel_values_videos")
        grids: tuple[VideoGrid, ...] = ()
        if pixels is not None:
            side = _side(config)
            grids = (VideoGrid(pixels.shape[1], side, side),) * len(pixels)
        require_video_tokens(len(tokens), grids, beside=1)  # the newline
        video_at = tokens.view(len(grids), -1)[:, :-1].flatten() if grids else tokens
        return plain_prompt(input_ids, video_at, grids)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Embeds:
        of = model.model

        def images() -> list[Tensor]:
            sizes, counts = inputs["image_sizes"], inputs.get("batch_num_images")
            return of.get_image_features(inputs["pixel_values"], sizes, batch_num_images=counts).pooler_output

        def videos() -> Tensor:
            pixels, side = inputs["pixel_values_videos"], _side(model.config)
            some = vision_chunks(pixels.shape[1], pixels.shape[-2:], model.config.vision_config.patch_size)
            looked = [of.get_video_features(pixels[:, now]).pooler_output for now in some]
            # Some versions of transformers end what they return with the newline, others add it in forward().
            cells = [rows[:, : (now.stop - now.start) * side**2] for rows, now in zip(looked, some, strict=True)]
            newline = of.image_newline.to(cells[0]).expand(len(pixels), 1, -1)
            return torch.cat([*cells, newline], dim=1).flatten(0, 1)

        return embedded(model, inputs, images, videos)


def _side(config: Any) -> int:
    """Tokens along each side of a frame."""
    vision = config.vision_config
    return -(-(vision.image_size // vision.patch_size) // 2)
