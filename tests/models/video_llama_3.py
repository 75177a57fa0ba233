from typing import Any

import numpy as np
import torch
from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

from tests.models.common import IMAGE, VIDEO, text

KINDS_OF_TOKENS = False


def make(layers: int, vocabulary: int) -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
    }
    return VideoLlama3ForConditionalGeneration(
        VideoLlama3Config(
            text_config=text(layers, vocabulary) | {"model_type": "qwen2"},
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )
    )


def clip(rng: np.random.Generator, words: torch.Tensor, frames: int) -> dict[str, torch.Tensor]:
    # As the processor has it: some text before every frame; the first frame whole, of the others half of the tokens.
    rows, columns = 4, 6
    has_token = torch.from_numpy(rng.random((frames, rows * columns // 4)) < 0.5)
    has_token[0] = has_token[:, 0] = True
    each = [torch.cat([words[2:4], torch.full((int(count),), VIDEO)]) for count in has_token.sum(1)]
    return {
        "input_ids": torch.cat([words[:2], *each, words[4:]])[None],
        "pixel_values_videos": torch.from_numpy(rng.normal(size=(frames * rows * columns, 588))).float(),
        "video_grid_thw": torch.tensor([[frames, rows, columns]]),
        "video_merge_sizes": torch.tensor([2]),
        "video_compression_mask": has_token.flatten(),
    }


def image(rng: np.random.Generator, model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    pixels = torch.from_numpy(rng.normal(size=(6, 588))).float()
    return torch.full((6,), IMAGE), {
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 2, 3]]),
        "image_merge_sizes": torch.tensor([1]),
    }
