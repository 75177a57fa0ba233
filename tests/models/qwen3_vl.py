from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.models import qwen2_vl
from tests.models.common import END, START, VIDEO, text

KINDS_OF_TOKENS = True
TEXT = {
    "head_dim": 32,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [6, 5, 5],
        "mrope_interleaved": True,
    },
}
VISION = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
image = qwen2_vl.image


def make(layers: int, vocabulary: int) -> Any:
    return with_head_norms(
        Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text(layers, vocabulary) | TEXT, vision_config=VISION, **qwen2_vl.TOKENS)
        )
    )


def with_head_norms(model: Any) -> Any:
    """Norms of queries and keys that differ between dimensions, and so large that attention is sharp."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.model.language_model.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            norm.weight.data = torch.rand(norm.weight.shape, generator=generator) + 1
    return model


def clip(rng: np.random.Generator, words: torch.Tensor, frames: int) -> dict[str, torch.Tensor]:
    """With two tokens of text, the time, before each step."""
    request = qwen2_vl.clip(rng, words, frames)
    steps, rows, columns = request["video_grid_thw"][0].tolist()
    step = torch.tensor([START, *[VIDEO] * (rows * columns // 4), END])
    times = torch.from_numpy(rng.integers(1, 140, size=(steps, 2)))
    video = torch.cat([part for time in times for part in (time, step)])
    return request | {"input_ids": torch.cat([words[:4], video, words[4:-1]])[None]}
