"""LLaVA-OneVision: plain one-dimensional positions, frames pooled to a square grid, one newline after the video."""

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


class LlavaOnevision:
    model_types: tuple[str, ...] = ("llava_onevision",)

    def place(self, model: Any, inputs: Mapping[str, Any]) -> Prompt:
        input_ids = require_one_request(inputs)
        pixels, grid = inputs.get("pixel_values_videos"), NO_VIDEO
        if pixels is not None:
            require_one_video(len(pixels))
            vision = model.config.vision_config
            side = -(-(vision.image_size // vision.patch_size) // 2)
            grid = VideoGrid(pixels.shape[1], side, side)
        tokens = (input_ids[0] == model.config.video_token_id).nonzero()[:, 0]
        require_video_tokens(len(tokens), grid.tokens + (pixels is not None))  # the newline
        positions = torch.arange(len(input_ids[0]), device=input_ids.device)[None]
        return Prompt(input_ids[0], tokens[:-1], grid, positions, positions[:, -1] + 1)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        of = model.model

        def images() -> list[Tensor]:
            sizes, counts = inputs["image_sizes"], inputs.get("batch_num_images")
            return of.get_image_features(inputs["pixel_values"], sizes, batch_num_images=counts).pooler_output

        def video() -> Tensor:
            features = of.get_video_features(inputs["pixel_values_videos"]).pooler_output.flatten(0, 1)
            if len(features) < int((inputs["input_ids"] == model.config.video_token_id).sum()):
                # transformers before 5.20 or so adds the newline in forward() only
                features = torch.cat([features, of.image_newline[None].to(features)])
            return features

        return embedded(model, inputs, images, video)

    def language_model(self, model: Any) -> nn.Module:
        return model.model.language_model
