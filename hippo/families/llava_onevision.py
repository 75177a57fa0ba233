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
    filled,
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
        input_ids, config = inputs["input_ids"][0], model.config
        embeds = model.get_input_embeddings()(input_ids)
        if inputs.get("pixel_values") is not None:
            images = model.model.get_image_features(
                inputs["pixel_values"], inputs["image_sizes"], batch_num_images=inputs.get("batch_num_images")
            ).pooler_output
            embeds = filled(embeds, input_ids == config.image_token_id, torch.cat(list(images)))
        if inputs.get("pixel_values_videos") is not None:
            video = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output.flatten(0, 1)
            here = input_ids == config.video_token_id
            if len(video) < int(here.sum()):  # transformers before 5.20 or so adds the newline in forward() only
                video = torch.cat([video, model.model.image_newline[None].to(video)])
            embeds = filled(embeds, here, video)
        return embeds

    def language_model(self, model: Any) -> nn.Module:
        return model.model.language_model
