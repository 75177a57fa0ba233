"""Small random models of all families whose output depends on the video and on positions, and inputs for them.

Default initialisation gives models that hardly look at either, on which a wrong implementation passes; these have
their linear weights and embeddings scaled up. `test_families` proves that they do look.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import (
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

VOCABULARY = 160
VIDEO, IMAGE, START, END = 150, 151, 152, 153
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
FAMILIES = ("qwen2_5_vl", "llava_onevision", "qwen2_vl", "llava_next_video")


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


@lru_cache
def qwen(seed: int = 0, layers: int = 3, vocabulary: int = VOCABULARY) -> Any:
    """A random Qwen2.5-VL."""
    config = Qwen2_5_VLConfig(
        text_config=text(layers, vocabulary) | MROPE,
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 4,
        },
        **QWEN_TOKENS,
    )
    return scaled(Qwen2_5_VLForConditionalGeneration(config), seed)


@lru_cache
def qwen2(seed: int = 0, layers: int = 3, vocabulary: int = VOCABULARY) -> Any:
    """A random Qwen2-VL."""
    config = Qwen2VLConfig(
        text_config=text(layers, vocabulary) | MROPE,
        vision_config={"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 64},
        **QWEN_TOKENS,
    )
    return scaled(Qwen2VLForConditionalGeneration(config), seed)


@lru_cache
def llava_next(seed: int = 0, layers: int = 3, vocabulary: int = VOCABULARY) -> Any:
    """A random LLaVA-NeXT-Video."""
    config = LlavaNextVideoConfig(
        text_config=text(layers, vocabulary) | {"model_type": "llama"},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 32,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[56, 56], [56, 112]],
    )
    return scaled(LlavaNextVideoForConditionalGeneration(config), seed)


@lru_cache
def llava(seed: int = 0, layers: int = 3, vocabulary: int = VOCABULARY) -> Any:
    """A random LLaVA-OneVision."""
    config = LlavaOnevisionConfig(
        text_config=text(layers, vocabulary) | {"model_type": "qwen2"},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[56, 56], [56, 112]],
    )
    config.image_token_id, config.video_token_id = IMAGE, VIDEO
    return scaled(LlavaOnevisionForConditionalGeneration(config), seed)


def model(family: str, seed: int = 0, layers: int = 3, vocabulary: int = VOCABULARY) -> Any:
    """A random model of a family; the same arguments give the same object."""
    makers = {"qwen2_5_vl": qwen, "llava_onevision": llava, "qwen2_vl": qwen2, "llava_next_video": llava_next}
    return makers[family](seed, layers, vocabulary)


def inputs(family: str, seed: int = 0, question: int = 6, frames: int = 8) -> dict[str, torch.Tensor]:
    """A processor's output for a random clip. question: tokens after the video. frames: even."""
    rng = np.random.default_rng(seed)
    words = torch.from_numpy(rng.integers(1, 140, size=4 + question))
    if family.startswith("qwen"):
        steps, rows, columns = frames // 2, 4, 6
        patches = torch.from_numpy(rng.normal(size=(steps * rows * columns, 1176))).float()
        video = torch.full((steps * rows * columns // 4,), VIDEO)
        ids = torch.cat([words[:3], torch.tensor([START]), video, torch.tensor([END]), words[4 : 3 + question]])[None]
        # Time reaches further than space: where transformers' two rules for the next position differ.
        times = {"second_per_grid_ts": torch.tensor([1.5])} if family == "qwen2_5_vl" else {}
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == VIDEO).int() * 2,
            "pixel_values_videos": patches,
            "video_grid_thw": torch.tensor([[steps, rows, columns]]),
            **times,
        }
    pixels = torch.from_numpy(rng.normal(size=(1, frames, 3, 56, 56))).float()
    newline = family == "llava_onevision"
    video = torch.full((frames * 4 + newline,), VIDEO)
    ids = torch.cat([words[:4], video, words[4 : 4 + question]])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}


def text_only(family: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A processor's output for a prompt without a video."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(1, 140, size=(1, 9)))
    kinds = {"mm_token_type_ids": torch.zeros_like(ids)} if family.startswith("qwen") else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **kinds}


def with_image(family: str, request: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """A request with an image before all else."""
    rng = np.random.default_rng(seed)
    if family.startswith("qwen"):
        image = {
            "pixel_values": torch.from_numpy(rng.normal(size=(24, 1176))).float(),
            "image_grid_thw": torch.tensor([[1, 4, 6]]),
        }
        ids = torch.tensor([[START, *[IMAGE] * 6, END]])
    else:
        image = {
            "pixel_values": torch.from_numpy(rng.normal(size=(1, 3, 3, 56, 56))).float(),
            "image_sizes": torch.tensor([[40, 100]]),
        }
        if family == "llava_onevision":
            image["batch_num_images"] = torch.tensor([1])
        with torch.no_grad():
            features = model(family).model.get_image_features(**image).pooler_output
        ids = torch.full((1, len(torch.cat(list(features)))), IMAGE)
    ids = torch.cat([ids, request["input_ids"]], dim=1)
    longer = request | image | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family.startswith("qwen"):
        longer["mm_token_type_ids"] = (ids == VIDEO).int() * 2 + (ids == IMAGE).int()
    return longer


def with_second_video(family: str, request: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """A request followed by another, of another video, in one prompt."""
    second = inputs(family, seed=seed, frames=6 if family.startswith("qwen") else 8)
    side_by_side = ("input_ids", "attention_mask", "mm_token_type_ids")
    return {key: torch.cat([value, second[key]], dim=1 if key in side_by_side else 0) for key, value in request.items()}


def generated(target: Any, request: dict[str, Any], **options: Any) -> list[int]:
    """What transformers' generate() says, prompt left out."""
    options = {"do_sample": False, "max_new_tokens": 24} | options
    return target.generate(**request, **options)[0, request["input_ids"].shape[1] :].tolist()
