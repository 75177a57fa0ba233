"""Qwen3-VL, dense or with experts: every frame behind its time as text, visual features added in the first layers too
(DeepStack)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hippo.families.base import Card, Embeds, Released, vision_chunks_of_grids
from hippo.families.qwen2_5_vl import Qwen2_5VL

_2B, _8B = Released("Qwen/Qwen3-VL-2B-Instruct", 2.13), Released("Qwen/Qwen3-VL-8B-Instruct", 8.77)


class DeepEmbeds(Embeds):
    """deep: (layers, L, D) added to the outputs of the first layers; zero for text."""

    def __init__(self, tokens: Tensor, deep: Tensor) -> None:
        super().__init__(tokens)
        self.deep = deep

    def __getitem__(self, which: Tensor | slice) -> DeepEmbeds:
        return DeepEmbeds(self.tokens[which], self.deep[:, which])

    def followed_by(self, tokens: Tensor) -> DeepEmbeds:
        """See Embeds."""
        deep = self.deep.new_zeros(len(self.deep), *tokens.shape)
        return DeepEmbeds(torch.cat([self.tokens, tokens]), torch.cat([self.deep, deep], dim=1))

    @property
    def arguments(self) -> dict[str, Any]:
        everywhere = torch.ones(1, len(self), dtype=torch.bool, device=self.tokens.device)
        return {"visual_pos_masks": everywhere, "deepstack_visual_embeds": list(self.deep)}


class Qwen3VL(Qwen2_5VL):
    model_types: tuple[str, ...] = ("qwen3_vl", "qwen3_vl_moe")
    card = Card(
        "Qwen3-VL",
        ((_8B, _2B), (Released("Qwen/Qwen3-VL-30B-A3B-Instruct", 31.07), _2B)),
        ("images, and the times between the frames, are never pruned", "its processor refuses a clip of one frame"),
    )

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Embeds:
        input_ids, config, of = inputs["input_ids"][0], model.config, model.model
        tokens = model.get_input_embeddings()(input_ids)
        deep = tokens.new_zeros(len(config.vision_config.deepstack_visual_indexes), *tokens.shape)
        layers = torch.cat([tokens[None], deep])
        for pixels, grid, token, features_of in (
            ("pixel_values", "image_grid_thw", config.image_token_id, of.get_image_features),
            ("pixel_values_videos", "video_grid_thw", config.video_token_id, of.get_video_features),
        ):
            if inputs.get(pixels) is not None:
                chunks = vision_chunks_of_grids(inputs[pixels], inputs[grid])
                features = torch.cat([_features(features_of(*chunk)) for *chunk, _ in chunks], dim=1)
                layers[:, input_ids == token] = features.to(layers)
        return DeepEmbeds(layers[0], layers[1:])


def _features(seen: Any) -> Tensor:
    """(1 + layers, V, D): the input embeddings, and what is added to the first layers' outputs."""
    # transformers 5.16 splits only the first of these by image or video, later ones all
    every = (seen.pooler_output, *seen.deepstack_features)
    return torch.stack([layer if isinstance(layer, Tensor) else torch.cat(layer) for layer in every])
