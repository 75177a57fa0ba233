"""LLaVA-OneVision: plain one-dimensional positions, frames pooled to a square grid, one newline after the video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hippo.errors import HippoError
from hippo.families.base import Prompt, VideoGrid, require_one_request


class LlavaOnevision:
    model_types: tuple[str, ...] = ("llava_onevision",)

    def place(self, model: Any, inputs: Mapping[str, Any]) -> Prompt:
        input_ids = require_one_request(inputs)
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
        features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output.flatten(0, 1).to(embeds)
        video = (input_ids == model.config.video_token_id)[:, None]
        if len(features) < int(video.sum()):  # transformers before 5.20 or so adds the newline in forward() only
            features = torch.cat([features, model.model.image_newline[None].to(features)])
        return embeds.masked_scatter(video, features)

    def language_model(self, model: Any) -> nn.Module:
        return model.model.language_model
