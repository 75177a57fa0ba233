"""How many frames fit: a long or large video is thinned before it is decoded, so that memory is not exhausted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hippo import tensor_parallel
from hippo.device import free_memory
from hippo.errors import BadRequest, OutOfMemory, is_out_of_memory
from hippo.inputs.chat import Messages, open_messages, parts_of, read_messages
from hippo.inputs.prepare import prepare
from hippo.video import Clip

FIRST_LOOK = 128  # frames of each video that are read before it is known what a frame costs
_COPIES = 4  # of the pixels after scaling, that a processor holds at the same time
_BYTES_PER_PIXEL = 36  # of a frame before scaling: RGB, a tensor of it, two in float32; Qwen2.5-VL's reaches 33
_SHARE = 0.8  # of the free memory that the videos may take


def read_fitting(
    processor: Any,
    messages: Messages,
    count: Callable[[dict[str, Any]], int],
    room: Callable[[dict[str, Any], int], int],
    limit: int | None,
    *,
    frames: int | None = None,
    fps: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any], tuple[str, ...]]:
    """Messages read, the inputs made of them, and warnings. A video file is read once.

    Fewer frames are taken of videos that have more tokens than `limit`, or than memory has room for. Memory is asked
    before anything is decoded, at what the frames' size alone costs, and again once the processor shows what a token
    costs.

    count: inputs -> their video tokens. room: inputs and their video tokens -> how many tokens fit. limit: None leaves
    it to memory alone. frames, fps, progress: see `read_messages`. Raises BadRequest, MediaError or OutOfMemory.
    """
    opened = open_messages(messages, frames=frames, fps=fps)
    affordable = _affordable(opened, frames, fps)
    most = min(FIRST_LOOK, affordable)
    first = True
    while True:
        try:
            turns = read_messages(opened, frames=frames, fps=fps, most=most, progress=progress)
            inputs = prepare(processor, turns)
        except Exception as error:
            if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
                raise
            raise OutOfMemory("the frames need more memory than is free", "use fewer frames") from error
        videos = parts_of(turns, "video")
        here = max((len(video.frames) for video in videos), default=0)
        wanted = max((video.wanted for video in videos), default=0)
        warnings = tuple(warning for video in videos for warning in video.warnings)
        if not videos:
            return turns, inputs, warnings
        tokens = count(inputs)
        fits = room(inputs, tokens) if limit is None else min(limit, room(inputs, tokens))
        reachable = min(wanted, affordable, max(1, here * fits // max(1, tokens)))
        if tokens <= fits and (not first or reachable <= here):
            why = "more of this size do not fit the free memory" if here == affordable < wanted else _why(limit, fits)
            thinned = () if here == wanted else (f"{here} of {wanted} frames are used: {why}",)
            return turns, inputs, (*warnings, *thinned)
        if here == 1:
            kind = BadRequest if fits == limit else OutOfMemory
            cause = f"{tokens} video tokens at one frame a video: {_why(limit, fits)}"
            raise kind(cause, "use smaller or fewer videos, or a larger --max-video-tokens")
        most, first = reachable, False
        del turns, inputs, videos  # or they would be held while more is read


def room_for(config: Any, dtype: torch.dtype, device: torch.device, inputs: dict[str, Any], tokens: int) -> int:
    """How many video tokens fit the free memory.

    Each of `tokens` costs its share of the pixels, as often as a processor holds them, its keys and values, twice with
    those of a draft, and its embedding in three places. config, dtype, device: the target's.
    """
    text, size = config.get_text_config(), dtype.itemsize
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head * size
    floats = (value for value in inputs.values() if isinstance(value, torch.Tensor) and value.is_floating_point())
    pixels = sum(value.nbytes for value in floats) / max(1, tokens)
    read = 2 * cache + 3 * text.hidden_size * size
    if device.type == "cpu":
        return int(_SHARE * free_memory() / (_COPIES * pixels + read))
    return int(_SHARE * min(free_memory() / (_COPIES * pixels), free_memory(device) / (pixels + read)))


def _affordable(messages: Messages, frames: int | None, fps: float | None) -> int:
    """How many frames of each video fit the free memory at their full size. Raises OutOfMemory if not even one does."""
    needed = each = 0
    for video in parts_of(messages, "video"):
        is_clip = isinstance(video, Clip)
        taken = video.estimate(frames, fps) if is_clip else len(video.frames)
        width, height = video.size if is_clip else video.frames.shape[2:0:-1]
        each += width * height * _BYTES_PER_PIXEL
        needed += taken * width * height * _BYTES_PER_PIXEL
    free = _SHARE * free_memory()
    # One number for all processes, so that all of them take the same frames.
    if (most := tensor_parallel.all_min(1 << 62 if needed <= free else int(free / each))) < 1:
        raise OutOfMemory(f"one frame of each video needs {each / 1e9:.1f} GB of memory", "scale the videos first")
    return most


def _why(limit: int | None, fits: int) -> str:
    return f"--max-video-tokens is {limit}" if fits == limit else f"{fits} video tokens fit the free memory"
