"""How many frames fit: a long video is thinned out in advance, rather than the process killed half-way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hippo.errors import HippoError
from hippo.inputs.chat import Messages, parts_of, read_messages
from hippo.inputs.prepare import prepare
from hippo.memory import free_memory

FIRST_LOOK = 128  # frames of each video that are read before it is known what a frame costs
_COPIES = 4  # of the pixels, that a processor holds at the same time
_SHARE = 0.8  # of the free memory that the video may take


def read_fitting(
    processor: Any,
    messages: Messages,
    count: Callable[[dict[str, Any]], int],
    room: Callable[[dict[str, Any], int], int],
    limit: int | None,
    **sampling: Any,
) -> tuple[list[dict[str, Any]], dict[str, Any], tuple[str, ...]]:
    """Messages read, the inputs made of them, and what the user should know: of videos that have more tokens than
    `limit`, or than memory has room for, fewer frames are taken.

    count: inputs -> their video tokens. room: inputs and their video tokens -> so many fit. limit: None leaves it to
    memory alone, which is only asked about videos of more than FIRST_LOOK frames. sampling: see `read_messages`.
    Raises HippoError.
    """
    most = FIRST_LOOK
    while True:
        turns = read_messages(messages, most=most, **sampling)
        inputs = prepare(processor, turns)
        videos = parts_of(turns, "video")
        here = max((len(video.frames) for video in videos), default=0)
        wanted = max((video.wanted for video in videos), default=0)
        warnings = tuple(warning for video in videos for warning in video.warnings)
        if not videos or (limit is None and wanted <= FIRST_LOOK):
            return turns, inputs, warnings
        tokens = count(inputs)
        fits = room(inputs, tokens) if limit is None else min(limit, room(inputs, tokens))
        frames = max(1, min(wanted, here * fits // max(1, tokens)))
        if tokens <= fits and (here == wanted or most != FIRST_LOOK or frames <= here):
            told = () if here == wanted else (f"{here} of {wanted} frames are used: {_why(limit, fits)}",)
            return turns, inputs, (*warnings, *told)
        if here == 1:
            raise HippoError(
                f"{tokens} video tokens at one frame a video: {_why(limit, fits)}",
                "use smaller or fewer videos, or a larger --max-video-tokens",
            )
        most = frames
        del turns, inputs, videos  # or they would be held while more of them is read


def room_for(model: Any, inputs: dict[str, Any], tokens: int) -> int:
    """How many video tokens fit the free memory, at what each of `tokens` costs: its share of the pixels, as often as a
    processor holds them; its keys and values, and as many again for a draft; its embedding in three places. Our
    estimate."""
    config, size = model.config.get_text_config(), model.dtype.itemsize
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head * size
    floats = (value for value in inputs.values() if isinstance(value, torch.Tensor) and value.is_floating_point())
    pixels = sum(value.nbytes for value in floats) / max(1, tokens)
    read = 2 * cache + 3 * config.hidden_size * size
    if model.device.type == "cpu":
        return int(_SHARE * free_memory() / (_COPIES * pixels + read))
    return int(_SHARE * min(free_memory() / (_COPIES * pixels), free_memory(model.device) / (pixels + read)))


def _why(limit: int | None, fits: int) -> str:
    return f"--max-video-tokens is {limit}" if fits == limit else f"{fits} video tokens fit the free memory"
