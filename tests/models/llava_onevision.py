from typing import Any

import numpy as np
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from tests.models import llava_next_video
from tests.models.common import IMAGE, VIDEO, text

KINDS_OF_TOKENS = False


def make(layers: int, vocabulary: int) -> Any:
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    config = LlavaOnevisionConfig(
        text_config=text(layers, vocabulary) | {"model_type": "qwen2"},
        vision_config=vision,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[56, 56], [56, 112]],
    )
    config.image_token_id, config.video_token_id = IMAGE, VIDEO
    return LlavaOnevisionForConditionalGeneration(config)


def clip(rng: np.random.Generator, words: torch.Tensor, frames: int) -> dict[str, torch.Tensor]:
    return llava_next_video.clip(rng, words, frames, newlines=1)


def image(rng: np.random.Generator, model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return llava_next_video.image(rng, model, batch_num_images=torch.tensor([1]))
