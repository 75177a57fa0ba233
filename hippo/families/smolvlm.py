"""SmolVLM2: a frame is an image of one tile, labelled "Frame from 00:01:"; plain one-dimensional positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hippo.families.base import Card, Embeds, Family, Prompt, Released, embedded, prompt_of_images, vision_chunks


class SmolVLM(Family):
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
            "frames and images differ only by the text between them",
            "images, and frames' times, are never pruned",
        ),
    )
    media_inputs = (*Family.media_inputs, "pixel_attention_mask")

    def prepare_prompt(self, config: Any, inputs: Mapping[str, Any]) -> Prompt:
        pixels, tiles, side = inputs.get("pixel_values"), 0, 0
        if pixels is not None:
            tiles = int(_frames(pixels).sum())
            side = pixels.shape[-1] // config.vision_config.patch_size // config.scale_factor
        return prompt_of_images(inputs, config.image_token_id, tiles, side)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Embeds:
        def images() -> list[Tensor]:
            pixels, mask = inputs["pixel_values"].flatten(0, 1)[None], inputs.get("pixel_attention_mask")
            if mask is not None:
                mask = mask.flatten(0, 1)[None]
            there, looked = _frames(pixels)[0].nonzero()[:, 0], []
            for some in vision_chunks(len(there), pixels.shape[-2:], model.config.vision_config.patch_size):
                now = there[some]
                seen = model.model.get_image_features(pixels[:, now], None if mask is None else mask[:, now])
                looked += seen.pooler_output
            return looked

        return embedded(model, inputs, images)

    def language_model(self, model: Any) -> nn.Module:
        return model.model.text_model


def _frames(pixels: Tensor) -> Tensor:
    """(batch, n) which of n images there are: the processor fills up shorter videos with zeros, which the model leaves
    out."""
    return (pixels != 0).flatten(2).any(2)
