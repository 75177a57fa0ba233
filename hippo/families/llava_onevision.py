"""LLaVA-OneVision: plain one-dimensional positions, frames pooled to a square grid, one newline after the video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hippo.errors import HippoError
from hippo.families.base import Prompt, VideoGrid


class LlavaOnevision:
    model_types: tuple[str, ...] = ("llava_onevision",)

    def place(self, model: Any, inputs: Mapping[str, Any]) -> Prompt:
        input_ids = inputs["input_ids"]
        if len(input_ids) != 1:
            raise HippoError(f"a batch of {len(input_ids)} requests", "pass one request at a time")
        pixels = inputs.get("pixel_values_videos")
        if inputs.get("pixel_values") is not None or pixels is None or len(pixels) != 1:
            raise HippoError("the request does not hold exactly one video and no image", "pass one video a request")
        vision = model.config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)
        grid = VideoGrid(pixels.shape[1], side, side)
        tokens = (input_ids[0] == model.config.video_token_id).nonzero()[:, 0]
        if len(tokens) != grid.tokens + 1:
            raise HippoError(
                f"{len(tokens)} video tokens in the prompt, {grid.tokens + 1} in the video",
                "use the model's own processor",
            )
        positions = torch.arange(len(input_ids[0]), device=input_ids.device)[None]
        return Prompt(input_ids[0], tokens[:-1], grid, positions, positions[:, -1] + 1)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        input_ids = inputs["input_ids"][0]
        embeds = model.get_input_embeddings()(input_ids)
        features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output
        video = (input_ids == model.config.video_token_id)[:, None]
        return embeds.masked_scatter(video, features.flatten(0, 1).to(embeds))

    def language_model(self, model: Any) -> nn.Module:
        return model.model.language_model
