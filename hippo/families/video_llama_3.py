"""VideoLLaMA3: plain one-dimensional positions, text before each frame, no token for patches that did not change."""

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
    Released,
    VideoGrid,
    embedded,
    one_request,
    plain_prompt,
    require_video_tokens,
    vision_chunks_of_grids,
)


class VideoLlama3(Family):
    model_types: tuple[str, ...] = ("video_llama_3",)
    card = Card(
        "VideoLLaMA3",
        ((Released("lkhl/VideoLLaMA3-7B-Image-HF", 8.04), Released("lkhl/VideoLLaMA3-2B-Image-HF", 1.96)),),
        (
            "DAMO-NLP-SG's own checkpoints bring their own code, which transformers does not have; those named are "
            "converted, of the image models",
            "patches that did not change have no token to begin with, which leaves less to prune",
            "images, and the text between the frames, are never pruned",
        ),
    )
    media_inputs = (*Family.media_inputs, "image_merge_sizes", "video_merge_sizes", "video_compression_mask")

    def prepare_prompt(self, config: Any, inputs: Mapping[str, Any]) -> Prompt:
        input_ids, video_at = one_request(inputs, config.video_token_id)
        grids = _grids(inputs) if inputs.get("pixel_values_videos") is not None else ()
        require_video_tokens(len(video_at), grids)
        return plain_prompt(input_ids, video_at, grids)

    def embed(self, model: Any, inputs: Mapping[str, Any]) -> Embeds:
        of = model.model

        def images() -> list[Tensor]:
            grids, merges = inputs["image_grid_thw"], inputs["image_merge_sizes"]
            return of.get_image_features(inputs["pixel_values"], grids, merges).pooler_output

        def videos() -> Tensor:
            pixels, merges = inputs["pixel_values_videos"], inputs["video_merge_sizes"]
            looked = (
                of.get_video_features(now, grids, merges[which]).pooler_output
                for now, grids, which in vision_chunks_of_grids(pixels, inputs["video_grid_thw"])
            )
            cells = torch.cat([row for rows in looked for row in rows])
            has_token = inputs.get("video_compression_mask")
            return cells if has_token is None else cells[has_token]

        return embedded(model, inputs, images, videos)


def _grids(inputs: Mapping[str, Any]) -> tuple[VideoGrid, ...]:
    """The grid of each video; its cells that the processor found unchanged have no token."""
    grids, has_token, begin = [], inputs.get("video_compression_mask"), 0
    for (frames, rows, columns), merge in zip(
        inputs["video_grid_thw"].tolist(), inputs["video_merge_sizes"].tolist(), strict=True
    ):
        end = begin + frames * (rows // merge) * (columns // merge)
        with_token = None if has_token is None else has_token[begin:end].cpu().nonzero()[:, 0]
        grids.append(VideoGrid(frames, rows // merge, columns // merge, with_token))
        begin = end
    return tuple(grids)
