from typing import Any

import numpy as np
import torch
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

from tests.models.common import IMAGE, VIDEO, text

KINDS_OF_TOKENS = False


def make(layers: int, vocabulary: int) -> Any:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "projection_dim": 32,
    }
    return LlavaNextVideoForConditionalGeneration(
        LlavaNextVideoConfig(
            text_config=text(layers, vocabulary) | {"model_type": "llama"},
            vision_config=vision,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[56, 56], [56, 112]],
        )
    )


def clip(rng: np.random.Generator, words: torch.Tensor, frames: int, newlines: int = 0) -> dict[str, torch.Tensor]:
    pixels = torch.from_numpy(rng.normal(size=(1, frames, 3, 56, 56))).float()
    video = torch.full((frames * 4 + newlines,), VIDEO)
    return {"input_ids": torch.cat([words[:4], video, words[4:]])[None], "pixel_values_videos": pixels}


def image(rng: np.random.Generator, model: Any, **others: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    pixels = torch.from_numpy(rng.normal(size=(1, 3, 3, 56, 56))).float()
    request = {"pixel_values": pixels, "image_sizes": torch.tensor([[40, 100]]), **others}
    with torch.no_grad():
        features = model.model.get_image_features(**request).pooler_output
    return torch.full((len(torch.cat(list(features))),), IMAGE), request
