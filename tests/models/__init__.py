"""Small random models of all families whose output depends on the video and on positions, and inputs for them.

Default initialisation gives models that hardly look at either, on which a wrong implementation passes; these have
their linear weights and embeddings scaled up. `test_families` proves that they do look.

Each family is a module here, named by the type of its model, with three functions:
make(layers, vocabulary): an untrained model. clip(rng, words, frames): the processor's output for a random clip, with
four tokens of text before or around it and the others after it. image(rng, model): (the tokens of an image in the
prompt, the processor's other output for it).
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch

from tests.models.common import IMAGE, VIDEO, VOCABULARY, scaled

FAMILIES = (
    "qwen2_5_vl",
    "llava_onevision",
    "qwen2_vl",
    "llava_next_video",
    "qwen3_vl",
    "qwen3_vl_moe",
    "internvl",
    "smolvlm",
    "video_llama_3",
)


def _of(family: str) -> Any:
    return import_module(f"tests.models.{family}")


@lru_cache
def _model(family: str, seed: int, layers: int, vocabulary: int) -> Any:
    with torch.random.fork_rng():  # not all of a model is scaled: the same in every run
        torch.manual_seed(seed)
        return scaled(_of(family).make(layers, vocabulary), seed)


def model(family: str, seed: int = 0, layers: int = 3, vocabulary: int = VOCABULARY) -> Any:
    """A random model of a family; the same arguments give the same object."""
    return _model(family, seed, layers, vocabulary)


def inputs(family: str, seed: int = 0, question: int = 6, frames: int = 8) -> dict[str, torch.Tensor]:
    """A processor's output for a random clip. question: tokens after the video. frames: even."""
    rng = np.random.default_rng(seed)
    return _whole(family, _of(family).clip(rng, torch.from_numpy(rng.integers(1, 140, size=4 + question)), frames))


def text_only(family: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """A processor's output for a prompt without a video."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(1, 140, size=(1, 9)))
    return _whole(family, {"input_ids": ids})


def with_image(family: str, request: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """A request with an image before all else."""
    tokens, image = _of(family).image(np.random.default_rng(seed), model(family))
    # Where frames are images too, the image's pixels come before theirs.
    image = {key: torch.cat([value, request[key]]) if key in request else value for key, value in image.items()}
    return _whole(family, request | image | {"input_ids": torch.cat([tokens[None], request["input_ids"]], dim=1)})


def with_second_video(family: str, request: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    """A request followed by another, of another video, in one prompt."""
    second = inputs(family, seed=seed)
    a_value_a_token = ("input_ids", "attention_mask", "mm_token_type_ids")
    return _whole(
        family,
        {key: torch.cat([value, second[key]], dim=int(key in a_value_a_token)) for key, value in request.items()},
    )


def _whole(family: str, request: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With what follows from the ids."""
    ids = request["input_ids"]
    request["attention_mask"] = torch.ones_like(ids)
    if _of(family).KINDS_OF_TOKENS:
        request["mm_token_type_ids"] = (ids == VIDEO).int() * 2 + (ids == IMAGE).int()
    return request


def generated(target: Any, request: dict[str, Any], **options: Any) -> list[int]:
    """What transformers' generate() says, prompt left out."""
    options = {"do_sample": False, "max_new_tokens": 24} | options
    return target.generate(**request, **options)[0, request["input_ids"].shape[1] :].tolist()
