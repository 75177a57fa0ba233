from typing import Any

import numpy as np
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tests.models.common import END, IMAGE, START, VIDEO, text

KINDS_OF_TOKENS = True
TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}


def make(layers: int, vocabulary: int) -> Any:
    vision = {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 64}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text(layers, vocabulary) | MROPE, vision_config=vision, **TOKENS)
    )


def clip(rng: np.random.Generator, words: torch.Tensor, frames: int) -> dict[str, torch.Tensor]:
    steps, rows, columns = frames // 2, 4, 6
    video = torch.full((steps * rows * columns // 4,), VIDEO)
    return {
        "input_ids": torch.cat([words[:3], torch.tensor([START]), video, torch.tensor([END]), words[4:-1]])[None],
        "pixel_values_videos": torch.from_numpy(rng.normal(size=(steps * rows * columns, 1176))).float(),
        "video_grid_thw": torch.tensor([[steps, rows, columns]]),
    }


def image(rng: np.random.Generator, model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    pixels = torch.from_numpy(rng.normal(size=(24, 1176))).float()
    return torch.tensor([START, *[IMAGE] * 6, END]), {
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }
