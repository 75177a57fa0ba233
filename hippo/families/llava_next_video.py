"""LLaVA-NeXT-Video: plain one-dimensional positions, frames pooled to a square grid."""

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
    VideoGrid,
    embedded,
    one_request,
    plain_prompt,
    require_video_tokens,
    vision_chunks,
)


class LlavaNextVideo(Family):
    model_types: tuple[str, ...] = ("llava_next_video",)
    card = Card(
        "LLaVA-NeXT-Video",
        (),
        (
            "no pair is known: llava-hf/LLaVA-NeXT-Video-7B-hf and -34B-hf have different tokenizers, and there is "
            "nothing smaller; a draft would have to be trained",
            "images are never pruned",
        ),
    )
    media_inputs = (*Family.media_inputs, "image_sizes")

    def prepare_prompt(self, config: Any, inputs: Mapping[str, Any]) -> Prompt:
        input_ids, video_at = one_request(inputs, config.video_token_id)
        pixels = inputs.get("pixel_values_videos")
        grids: tuple[VideoGrid, ...] = ()
        if pixels is not None:
            side = pixels.shape[-1] // config.vision_config.patch_size // config.spatial_pool_stride
            grids = (VideoGrid(pixels.shape[1], side, side),) * len(pixels)
        require_video_tokens(len(video_at), grids)
        return plain_prompt(input_ids, video_at, grids)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Embeds:
        of = model.model

        def videos() -> Tensor:
            pixels, patch = inputs["pixel_values_videos"], model.config.vision_config.patch_size
            return torch.cat(
                [
                    # transformers before 5.20 or so has a frame where later ones have a video
                    each.flatten(0, -2)
                    for video in pixels
                    for now in vision_chunks(len(video), video.shape[-2:], patch)
                    for each in of.get_video_features(video[None, now]).pooler_output
                ]
            )

        return embedded(
            model,
            inputs,
            lambda: of.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output,
            videos,
        )
