"""Qwen2.5-VL: M-RoPE with time in seconds, video tokens as a merged patch grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hippo.errors import HippoError
from hippo.families.base import (
    Card,
    Embeds,
    Family,
    Prompt,
    Released,
    VideoGrid,
    embedded,
    one_request,
    plain_prompt,
    require_video_tokens,
    vision_chunks_of_grids,
)

_3B, _7B = Released("Qwen/Qwen2.5-VL-3B-Instruct", 3.75), Released("Qwen/Qwen2.5-VL-7B-Instruct", 8.29)


class Qwen2_5VL(Family):
    model_types: tuple[str, ...] = ("qwen2_5_vl",)
    card = Card(
        "Qwen2.5-VL",
        (
            (_7B, _3B),
            (Released("Qwen/Qwen2.5-VL-32B-Instruct", 33.45), _3B),
            (Released("Qwen/Qwen2.5-VL-72B-Instruct", 73.41), _7B),
        ),
        ("images are never pruned",),
    )
    media_inputs = (*Family.media_inputs, "second_per_grid_ts")

    def prepare_prompt(self, config: Any, inputs: Mapping[str, Any]) -> Prompt:
        input_ids, video_at = one_request(inputs, config.video_token_id)
        images, videos = inputs.get("image_grid_thw"), inputs.get("video_grid_thw")
        merge = config.vision_config.spatial_merge_size
        grids = tuple(
            VideoGrid(frames, rows // merge, columns // merge)
            for frames, rows, columns in (videos.tolist() if videos is not None else [])
        )
        require_video_tokens(len(video_at), grids)
        if images is None and videos is None:
            return plain_prompt(input_ids, video_at, grids, axes=3)
        kinds = inputs.get("mm_token_type_ids")
        if kinds is None:
            # generate() would silently fall back to text positions.
            raise HippoError("the inputs lack mm_token_type_ids", "use the model's own processor, of this transformers")
        positions, _ = _without_weights(config).get_rope_index(
            input_ids[None],
            mm_token_type_ids=kinds,
            image_grid_thw=images,
            video_grid_thw=videos,
            second_per_grid_ts=inputs.get("second_per_grid_ts"),
            attention_mask=inputs.get("attention_mask"),
        )
        # generate() continues from the last prompt token's position. A long clip's temporal axis can exceed it.
        return Prompt(input_ids, video_at, grids, positions[:, 0], positions[:, 0, -1] + 1)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Embeds:
        of = model.model

        def videos() -> Tensor:
            looked = vision_chunks_of_grids(inputs["pixel_values_videos"], inputs["video_grid_thw"])
            return torch.cat(
                [row for now, grids, _ in looked for row in of.get_video_features(now, grids).pooler_output]
            )

        return embedded(
            model,
            inputs,
            lambda: of.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output,
            videos,
        )


def _without_weights(config: Any) -> Any:
    """A model object that holds a configuration and no modules: get_rope_index reads nothing else."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    kind: Any = MODEL_MAPPING[CONFIG_MAPPING[config.model_type]]
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    model.config = config
    return model
