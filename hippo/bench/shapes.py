"""Real layer shapes with random weights: how fast a model of that size is, not what it says. All figures from them are
synthetic. Shapes are those of the published configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hippo.errors import HippoError

WORDS = 20  # tokens of text after the video
QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "tokens_per_second": 2}


@dataclass(frozen=True)
class Text:
    """Sizes of a text model."""

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int

    def as_config(self) -> dict[str, Any]:
        """In the words of transformers."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 131072,
        }


@dataclass(frozen=True)
class Shape:
    """A target, a draft, and how to make them and a request of so many video tokens."""

    make: Callable[[Text], Any]
    request: Callable[[int], dict[str, Tensor]]
    target: Text
    draft: Text


def qwen2_5_vl_config(text: Text) -> Any:
    """The configuration of a Qwen2.5-VL around a text model, with the vision tower that all of its sizes share."""
    from transformers import Qwen2_5_VLConfig

    size = text.width // text.heads
    rotary = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [size // 8, size * 3 // 16, size * 3 // 16]}
    return Qwen2_5_VLConfig(
        text_config=text.as_config() | {"rope_parameters": rotary},
        vision_config=QWEN_VISION | {"out_hidden_size": text.width},
    )


def qwen2_5_vl(text: Text) -> Any:
    """A Qwen2.5-VL around a text model."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration(qwen2_5_vl_config(text))


def qwen2_5_vl_request(video_tokens: int) -> dict[str, Tensor]:
    """A processor's output for a random clip of at least so many video tokens, 64 a step of two frames."""
    steps, side = -(-video_tokens // 64), 16
    # The ids of Qwen2.5-VL's own markers.
    start, end, video = 151652, 151653, 151656
    ids = torch.tensor([[*_words(3), start, *[video] * (64 * steps), end, *_words(WORDS)]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == video).int() * 2,
        "pixel_values_videos": torch.randn(steps * side * side, 1176, generator=torch.Generator().manual_seed(0)),
        "video_grid_thw": torch.tensor([[steps, side, side]]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }


def qwen2_5_text(text: Text) -> Any:
    """A Qwen2.5-VL whose vision tower has one layer: for prompts of text, whose cost is the text model's."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    model_config = qwen2_5_vl_config(text)
    model_config.vision_config.depth = 1
    return Qwen2_5_VLForConditionalGeneration(model_config)


def text_request(tokens: int) -> dict[str, Tensor]:
    """A prompt of so many tokens of text, without a video."""
    ids = torch.tensor([_words(tokens)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def llava_onevision(text: Text) -> Any:
    """A LLaVA-OneVision around a text model, with the vision tower that all of its sizes share."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    }
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(text_config=text.as_config() | {"model_type": "qwen2"}, vision_config=vision)
    )


def llava_onevision_request(video_tokens: int) -> dict[str, Tensor]:
    """A processor's output for a random clip of at least so many video tokens, 196 a frame."""
    frames, video = -(-video_tokens // 196), 151647
    ids = torch.tensor([[*_words(3), *[video] * (196 * frames + 1), *_words(WORDS)]])
    pixels = torch.randn(1, frames, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}


def _words(count: int) -> list[int]:
    return list(range(1000, 1000 + count))


QWEN_32B = Text(5120, 27648, 64, 40, 8, 152064)
QWEN_7B = Text(3584, 18944, 28, 28, 4, 152064)
QWEN_3B = Text(2048, 11008, 36, 16, 2, 152064)
QWEN_1_5B = Text(1536, 8960, 28, 12, 2, 151936)
QWEN_HALF_B = Text(896, 4864, 24, 14, 2, 152064)
SHAPES = {
    "qwen2.5-1.5b+0.5b": Shape(qwen2_5_text, text_request, QWEN_1_5B, QWEN_HALF_B),
    "qwen2.5-7b+0.5b": Shape(qwen2_5_text, text_request, QWEN_7B, QWEN_HALF_B),
    "qwen2.5-7b+3b": Shape(qwen2_5_text, text_request, QWEN_7B, QWEN_3B),
    "qwen2.5-32b+7b": Shape(qwen2_5_text, text_request, QWEN_32B, QWEN_7B),
    "qwen2.5-vl-3b": Shape(qwen2_5_vl, qwen2_5_vl_request, QWEN_3B, QWEN_HALF_B),
    "qwen2.5-vl-7b": Shape(qwen2_5_vl, qwen2_5_vl_request, QWEN_7B, QWEN_HALF_B),
    "qwen2.5-vl-7b+3b": Shape(qwen2_5_vl, qwen2_5_vl_request, QWEN_7B, QWEN_3B),
    "qwen2.5-vl-32b": Shape(qwen2_5_vl, qwen2_5_vl_request, QWEN_32B, QWEN_7B),
    "llava-onevision-7b": Shape(llava_onevision, llava_onevision_request, QWEN_7B, QWEN_HALF_B),
}


def shape_named(name: str) -> Shape:
    """Look a shape up. Raises HippoError naming those there are."""
    if name not in SHAPES:
        raise HippoError(f"unknown shape {name!r}", f"use one of: {', '.join(f'shape:{known}' for known in SHAPES)}")
    return SHAPES[name]


def model_of_shape(name: str, role: str) -> Any:
    """The "target" or the "draft" of a shape, without weights. Raises HippoError."""
    shape = shape_named(name)
    with torch.device("meta"):
        return shape.make(getattr(shape, role))


def filled(make: Callable[[Text], Any], text: Text, device: str, dtype: torch.dtype) -> Any:
    """A model of random weights, made in its precision where it runs, so that it never takes more room."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = make(text)
    finally:
        torch.set_default_dtype(before)
    return model.eval()
