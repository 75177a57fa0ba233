"""SmolVLM2: a frame is an image of one tile, labelled "Frame from 00:01:"; plain one-dimensional positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hippo.families.base import Card, Embeds, Prompt, Released, embedded, prompt_of_images


class SmolVLM:
    model_types: tuple[str, ...] = ("smolvlm",)
    card = Card(
        "SmolVLM2",
        (
            (
                Released("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 0.51),
                Released("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", 0.26),
            ),
        ),
        (
            "its processor needs `pip install num2words`",
            "frames are told from images by the text between them",
            "images, and frames' times, are never pruned",
        ),
    )

    def place(self, model: Any, inputs: Mapping[str, Any]) -> Prompt:
        pixels, config = inputs.get("pixel_values"), model.config
        tiles = side = 0
        if pixels is not None:
            # The processor fills up shorter videos with frames of zeros, which the model leaves out.
            tiles = int((pixels != 0).flatten(2).any(2).sum())
            side = pixels.shape[-1] // config.vision_config.patch_size // config.scale_factor
        return prompt_of_images(inputs, config.image_token_id, tiles, side)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Embeds:
        def images() -> Any:
            pixels, mask = inputs["pixel_values"], inputs.get("pixel_attention_mask")
            return model.model.get_image_features(pixels, mask).pooler_output

        return embedded(model, inputs, images)

    def language_model(self, model: Any) -> nn.Module:
        return model.model.text_model
