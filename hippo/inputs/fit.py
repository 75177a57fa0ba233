"""What fits: a long or large video is scaled down and thinned before it is decoded, so that neither a budget of tokens
nor memory is exceeded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hippo import tensor_parallel
from hippo.device import bytes_per_token, free_memory
from hippo.errors import BadRequest, OutOfMemory, is_out_of_memory
from hippo.inputs.chat import Messages, open_messages, parts_of, read_opened
from hippo.inputs.options import MediaOptions
from hippo.inputs.pixels import Planned, Scaling, plan, require_scalable, scaled, shape_of
from hippo.inputs.prepare import prepare, render
from hippo.video import Decoder, Video

FIRST_LOOK = 128  # frames of each video that are read before it is known what a frame costs
_COPIES = 4  # of the pixels after scaling, that a processor holds at the same time
_BYTES_PER_PIXEL = 36  # of a frame before scaling: RGB, a tensor of it, two in float32; Qwen2.5-VL's reaches 33
_SHARE = 0.8  # of the free memory that the videos may take


@dataclass(frozen=True)
class Budget:
    """How many video tokens a request may have.

    limit: the caller's; None: as many as fit. context: tokens of the longest prompt, None if there is no limit. room:
    bytes of pixels that a token costs -> how many tokens fit the free memory.
    """

    limit: int | None
    context: int | None
    room: Callable[[float], int]

    def fits(self, pixels: float, others: int) -> tuple[int, str]:
        """How many video tokens fit beside `others`, and why no more. pixels: bytes that a token costs."""
        room = self.room(pixels)
        limits = [(room, f"{room} video tokens fit the free memory")]
        if self.context is not None and others < self.context:  # else the prompt itself is too long
            limits.append((self.context - others, f"the model's context has room for {self.context} tokens"))
        if self.limit is not None:
            limits.append((self.limit, f"--max-video-tokens is {self.limit}"))
        return min(reversed(limits), key=lambda each: each[0])


def read_fitting(
    processor: Any,
    messages: Messages,
    count: Callable[[dict[str, Any]], int],
    budget: Budget,
    *,
    options: MediaOptions | None = None,
    progress: Callable[[float], None] | None = None,
    process: Callable[[Messages, dict[str, Any]], dict[str, Any]] | None = None,
    decoder: Decoder | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any], tuple[str, ...]]:
    """Messages read, the inputs made of them, and warnings. A video file is read once.

    Of videos that have more tokens than the budget, the frames are scaled down, as far as a floor and where the
    processor can, and then fewer are taken. For such processors that is known from the clips' headers, before anything
    is decoded. Of others, memory is asked before anything is decoded, at what the frames' size alone costs, and the
    budget once the processor shows what a token costs.

    count: inputs -> their video tokens. options, progress: see `open_messages`. process: `prepare`, or what is used in
    its place. decoder: opens and decodes files; None: this process does. Raises BadRequest, MediaError or OutOfMemory.
    """
    options, decoder = options or MediaOptions(), decoder or Decoder()
    given = dict(options.processor_kwargs or {})
    videos_by = getattr(processor, "video_processor", None)
    opened = open_messages(messages, options, video_processor=videos_by, progress=progress, decoder=decoder)
    require_scalable(processor, opened)
    affordable = _affordable(opened, videos_by)
    scaling = None if given else Scaling.of(videos_by)  # options of the processor may change what it does
    planned = _planned(processor, scaling, opened, budget, affordable)
    most, first = (planned.most, False) if planned else (min(FIRST_LOOK, affordable), True)
    while True:
        try:
            turns = read_opened(opened, video_processor=videos_by, most=most, progress=progress, decoder=decoder)
            unscaled, notes = scaled(processor, turns, planned.cap if planned else math.inf)
            every = {**given, **unscaled}
            inputs = process(turns, every) if process else prepare(processor, turns, every)
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
        others = len(inputs["input_ids"][0]) - tokens if "input_ids" in inputs else 0
        fits, why = budget.fits(_pixel_bytes(inputs) / max(1, tokens), others)
        reachable = min(wanted, affordable, max(1, here * fits // max(1, tokens)))
        if tokens <= fits and (not first or reachable <= here):
            thinned = () if here == wanted else (f"{here} of {wanted} frames are used",)
            if here == affordable < wanted:
                why = "more of this size do not fit the free memory"
            return turns, inputs, (*warnings, *(f"{what}: {why}" for what in (*notes, *thinned)))
        if here == 1:
            kind = OutOfMemory if why.endswith("memory") else BadRequest
            cause = f"{tokens} video tokens at one frame a video: {why}"
            raise kind(cause, "use smaller or fewer videos, or a larger --max-video-tokens")
        most, first = min(reachable, here - 1) if tokens > fits else reachable, False
        del turns, inputs, videos  # or they would be held while more is read


def room_for(config: Any, dtype: torch.dtype, device: torch.device, pixels: float) -> int:
    """How many video tokens fit the free memory.

    Each costs its pixels, as often as a processor holds them, its keys and values, twice with those of a draft, and its
    embedding in three places. config, dtype, device: the target's. pixels: bytes.
    """
    read = 2 * bytes_per_token(config, dtype) + 3 * config.get_text_config().hidden_size * dtype.itemsize
    if device.type == "cpu":
        return int(_SHARE * free_memory() / (_COPIES * pixels + read))
    return int(_SHARE * min(free_memory() / (_COPIES * pixels), free_memory(device) / (pixels + read)))


def _pixel_bytes(inputs: dict[str, Any]) -> int:
    return sum(v.nbytes for v in inputs.values() if isinstance(v, torch.Tensor) and v.is_floating_point())


def _planned(processor: Any, scaling: Scaling | None, opened: Messages, budget: Budget, most: int) -> Planned | None:
    """The plan for the videos by what their headers say; None for a processor that does not scale by pixels."""
    videos = [
        (*shape_of(part["video"], part["wanted"]), part["options"])
        for turn in opened
        for part in turn["content"]
        if part["type"] == "video"
    ]
    if scaling is None or not videos:
        return None
    prompt = len(processor.tokenizer(render(processor, opened))["input_ids"]) if budget.context is not None else 0
    pixels = 3 * torch.float32.itemsize * scaling.step * scaling.factor**2
    fits, _ = budget.fits(pixels, prompt)
    return plan(scaling, videos, fits, most)


def _affordable(messages: Messages, video_processor: Any) -> int:
    """How many frames of each video fit the free memory at their full size; notes as "wanted" how many of each are
    wanted. Raises OutOfMemory if not even one does."""
    needed = each = 0
    for part in (part for turn in messages for part in turn["content"] if part["type"] == "video"):
        video = part["video"]
        wanted = video.estimate(part["options"].sampling(video_processor)) if not isinstance(video, Video) else 0
        part["wanted"], height, width = shape_of(video, wanted)
        each += width * height * _BYTES_PER_PIXEL
        needed += part["wanted"] * width * height * _BYTES_PER_PIXEL
    free = _SHARE * free_memory()
    # One number for all processes, so that all of them take the same frames.
    if (most := tensor_parallel.all_min(1 << 62 if needed <= free else int(free / each))) < 1:
        raise OutOfMemory(f"one frame of each video needs {each / 1e9:.1f} GB of memory", "scale the videos first")
    return most
