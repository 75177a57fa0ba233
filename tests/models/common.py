"""What the families' test models have in common."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 160
VIDEO, IMAGE, START, END = 150, 151, 152, 153


def text(layers: int, vocabulary: int) -> dict[str, Any]:
    """The text configuration that all families share."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }


def scaled(model: Any, seed: int, linear: float = 6.0, embeddings: float = 5.0) -> Any:
    """Give a model weights under which every input matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                factor = embeddings if "embed" in name and "patch" not in name else linear
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02 * factor)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()
