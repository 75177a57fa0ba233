from typing import Any

import numpy as np
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from tests.models.common import END, IMAGE, START, text

KINDS_OF_TOKENS = False
NEWLINE, FRAME, COLON = 140, 141, 142  # the processor's own text, apart from all other words


def make(layers: int, vocabulary: int) -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    }
    return InternVLForConditionalGeneration(
        InternVLConfig(
            text_config=text(layers, vocabulary) | {"model_type": "qwen2"},
            vision_config=vision,
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    )


def labelled(words: torch.Tensor, frames: int) -> torch.Tensor:
    """A prompt with a video, each frame of it with its number before it."""
    video = [
        token for number in range(frames) for token in (NEWLINE, FRAME, 1 + number, COLON, START, *[IMAGE] * 4, END)
    ]
    return torch.cat([words[:4], torch.tensor(video), words[4:-1]])[None]


def clip(rng: np.random.Generator, words: torch.Tensor, frames: int) -> dict[str, torch.Tensor]:
    pixels = torch.from_numpy(rng.normal(size=(frames, 3, 56, 56))).float()
    return {"input_ids": labelled(words, frames), "pixel_values": pixels}


def image(rng: np.random.Generator, model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    pixels = torch.from_numpy(rng.normal(size=(3, 3, 56, 56))).float()
    return torch.tensor([START, *[IMAGE] * 12, END]), {"pixel_values": pixels}
