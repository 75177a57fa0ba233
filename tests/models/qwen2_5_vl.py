from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.models import qwen2_vl
from tests.models.common import text

KINDS_OF_TOKENS = True
image = qwen2_vl.image


def make(layers: int, vocabulary: int) -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 4,
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text(layers, vocabulary) | qwen2_vl.MROPE, vision_config=vision, **qwen2_vl.TOKENS)
    )


def clip(rng: np.random.Generator, words: torch.Tensor, frames: int) -> dict[str, torch.Tensor]:
    # Time reaches further than space: where transformers' two rules for the next position differ.
    return qwen2_vl.clip(rng, words, frames) | {"second_per_grid_ts": torch.tensor([1.5])}
