"""LLaVA-NeXT-Video: plain one-dimensional positions, frames pooled to a square grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hippo.families.base import (
    NO_VIDEO,
    Prompt,
    VideoGrid,
    embedded,
    require_one_request,
    require_one_video,
    require_video_tokens,
)


class LlavaNextVideo:
    model_types: tuple[str, ...] = ("llava_next_video",)

    def place(self, model: Any, inputs: Mapping[str, Any]) -> Prompt:
        input_ids = require_one_request(inputs)
        pixels, grid = inputs.get("pixel_values_videos"), NO_VIDEO
        if pixels is not None:
            require_one_video(len(pixels))
            side = pixels.shape[-1] // model.config.vision_config.patch_size // model.config.spatial_pool_stride
            grid = VideoGrid(pixels.shape[1], side, side)
        video_at = (input_ids[0] == model.config.video_token_id).nonzero()[:, 0]
        require_video_tokens(len(video_at), grid.tokens)
        positions = torch.arange(len(input_ids[0]), device=input_ids.device)[None]
        return Prompt(input_ids[0], video_at, grid, positions, positions[:, -1] + 1)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        of = model.model
        return embedded(
            model,
            inputs,
            lambda: of.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output,
            lambda: of.get_video_features(inputs["pixel_values_videos"]).pooler_output.flatten(0, 1),
        )

    def language_model(self, model: Any) -> nn.Module:
        return model.model.language_model
