"""Qwen2.5-VL: M-RoPE with time in seconds, video tokens as a merged patch grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hippo.errors import HippoError
from hippo.families.base import Prompt, VideoGrid, require_one_request


class Qwen2_5VL:
    model_types: tuple[str, ...] = ("qwen2_5_vl",)

    def place(self, model: Any, inputs: Mapping[str, Any]) -> Prompt:
        input_ids = require_one_request(inputs)
        grids = inputs.get("video_grid_thw")
        if inputs.get("pixel_values") is not None or grids is None or len(grids) != 1:
            raise HippoError("the request does not hold exactly one video and no image", "pass one video a request")
        merge = model.config.vision_config.spatial_merge_size
        frames, rows, columns = (int(n) for n in grids[0])
        grid = VideoGrid(frames, rows // merge, columns // merge)
        video_at = (input_ids[0] == model.config.video_token_id).nonzero()[:, 0]
        if len(video_at) != grid.tokens:
            raise HippoError(
                f"{len(video_at)} video tokens in the prompt, {grid.tokens} in the video",
                "use the model's own processor",
            )
        kinds = inputs.get("mm_token_type_ids")
        if kinds is None:
            # generate() would silently fall back to text positions.
            raise HippoError("the inputs lack mm_token_type_ids", "use the model's own processor, of this transformers")
        # get_rope_index is a pure function of its arguments; the state that makes forward() unsafe to re-enter,
        # model.rope_deltas, is neither read nor written.
        positions, _ = model.model.get_rope_index(
            input_ids,
            mm_token_type_ids=kinds,
            video_grid_thw=grids,
            second_per_grid_ts=inputs.get("second_per_grid_ts"),
            attention_mask=inputs.get("attention_mask"),
        )
        # generate() goes on from the last prompt token's position, not from the largest one, which a long clip's
        # temporal axis can exceed.
        return Prompt(input_ids[0], video_at, grid, positions[:, 0], positions[:, 0, -1] + 1)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        input_ids = inputs["input_ids"][0]
        embeds = model.get_input_embeddings()(input_ids)
        features = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output
        video = (input_ids == model.config.video_token_id)[:, None]
        return embeds.masked_scatter(video, torch.cat(list(features)).to(embeds))

    def language_model(self, model: Any) -> nn.Module:
        return model.model.language_model
