from typing import Any

import numpy as np
import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from tests.models import internvl
from tests.models.common import END, IMAGE, START, text

KINDS_OF_TOKENS = False


def make(layers: int, vocabulary: int) -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config=text(layers, vocabulary) | {"model_type": "llama"}, vision_config=vision, image_token_id=IMAGE
        )
    )


def clip(rng: np.random.Generator, words: torch.Tensor, frames: int) -> dict[str, torch.Tensor]:
    pixels = torch.from_numpy(rng.normal(size=(1, frames, 3, 56, 56))).float()
    return {"input_ids": internvl.labelled(words, frames), "pixel_values": pixels, "pixel_attention_mask": seen(pixels)}


def image(rng: np.random.Generator, model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Two tiles, and what fills them up to the number of a clip's frames."""
    pixels = torch.zeros(1, 8, 3, 56, 56)
    pixels[:, :2] = torch.from_numpy(rng.normal(size=(2, 3, 56, 56)))
    tile = [START, *[IMAGE] * 4]
    return torch.tensor([*tile, *tile, END]), {"pixel_values": pixels, "pixel_attention_mask": seen(pixels)}


def seen(pixels: torch.Tensor) -> torch.Tensor:
    """The mask of the pixels that are not filling."""
    return (pixels != 0).any(2).long()
