"""InternVL: a frame is an image of one tile, labelled "Frame1: "; plain one-dimensional positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hippo.families.base import Card, Embeds, Family, Prompt, Released, embedded, prompt_of_images, vision_chunks


class InternVL(Family):
    model_types: tuple[str, ...] = ("internvl",)
    card = Card(
        "InternVL",
        ((Released("OpenGVLab/InternVL3-8B-hf", 7.94), Released("OpenGVLab/InternVL3-1B-hf", 0.94)),),
        ("frames and images differ only by the text between them", "images, and frames' numbers, are never pruned"),
    )

    def prepare_prompt(self, config: Any, inputs: Mapping[str, Any]) -> Prompt:
        pixels, tiles, side = inputs.get("pixel_values"), 0, 0
        if pixels is not None:
            tiles = len(pixels)
            side = int(pixels.shape[-1] // config.vision_config.patch_size[1] * config.downsample_ratio)
        return prompt_of_images(inputs, config.image_token_id, tiles, side)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Embeds:
        def images() -> list[Tensor]:
            pixels, (patch, _) = inputs["pixel_values"], model.config.vision_config.patch_size
            some = vision_chunks(len(pixels), pixels.shape[-2:], patch)
            return [image for now in some for image in model.model.get_image_features(pixels[now]).pooler_output]

        return embedded(model, inputs, images)
