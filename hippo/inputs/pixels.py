"""The size of frames, and how many tokens they are, for processors that scale by a number of pixels (Qwen's, and their
relatives). Known from a clip's header, before anything is decoded."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hippo.errors import BadRequest
from hippo.inputs.chat import Messages
from hippo.inputs.options import MediaOptions
from hippo.video import OpenClip, Video

# qwen-vl-utils' defaults, in tokens of one frame, where a part or a request asks for any size.
LEAST, MOST, TOTAL = 128, 768, int(128000 * 0.9)
IMAGE_LEAST, IMAGE_MOST = 4, 16384
_AT_ONCE = 16  # frames that are scaled together


@dataclass(frozen=True)
class Scaling:
    """How a processor scales.

    factor: pixels along one side of a token. step: frames in one token. least, most: pixels of a frame, or of the whole
    video if per_video. resample: of PIL.
    """

    factor: int
    step: int
    least: int
    most: int
    per_video: bool
    resample: Any

    @classmethod
    def of(cls, processor: Any) -> Scaling | None:
        """That of a video or image processor; None for one whose frames have a fixed size."""
        patch, merge = getattr(processor, "patch_size", None), getattr(processor, "merge_size", None)
        size = getattr(processor, "size", None) or {}
        least, most = (getattr(size, name, None) for name in ("shortest_edge", "longest_edge"))
        if not (patch and merge and least and most):
            return None
        rule = getattr(sys.modules[type(processor).__module__], "smart_resize", None)
        per_video = rule is not None and "num_frames" in inspect.signature(rule).parameters
        step = getattr(processor, "temporal_patch_size", None) or 1
        return cls(int(patch) * int(merge), step, int(least), int(most), per_video, processor.resample)

    def size(
        self, count: int, height: int, width: int, options: MediaOptions, cap: float = math.inf, image: bool = False
    ) -> tuple[int, int]:
        """(height, width) that `count` frames, or an image, are scaled to. cap: pixels of a frame, for a budget.

        Raises BadRequest for what the processor cannot scale.
        """
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

        least, most = self._limits(count, options, cap, image)
        if options.resized_height is not None and options.resized_width is not None:
            height, width = options.resized_height, options.resized_width
        try:
            return smart_resize(height, width, self.factor, least, most)
        except ValueError as error:
            raise BadRequest(
                f"the model's processor refuses frames of {width}x{height} ({error})", "cut them"
            ) from None

    def tokens(self, count: int, size: tuple[int, int]) -> int:
        """How many tokens `count` frames of this size are."""
        return -(-count // self.step) * (size[0] // self.factor) * (size[1] // self.factor)

    def _limits(self, count: int, options: MediaOptions, cap: float, image: bool) -> tuple[int, int]:
        token = self.factor**2
        if not options.scales and image:
            return self.least, self.most
        if image or options.resized_height is not None:
            return options.min_pixels or IMAGE_LEAST * token, options.max_pixels or IMAGE_MOST * token
        frames = count if self.per_video else 1
        least, most = self.least / frames, self.most / frames
        if options.scales:
            least = options.min_pixels or min(LEAST * token, options.max_pixels or math.inf)
            most = max(min(MOST * token, (options.total_pixels or TOTAL * token) / count * 2), int(least * 1.05))
            most = min(options.max_pixels or most, most)
        if cap < most:  # a budget does not go below a floor
            most = max(cap, min(options.min_pixels or LEAST * token, most))
        return int(min(least, most)), int(most)


@dataclass(frozen=True)
class Planned:
    """What a budget leaves of the videos. cap: pixels of a frame; most: frames of a video; both may be no limit."""

    cap: float
    most: int


def plan(scaling: Scaling, videos: Sequence[tuple[int, int, int, MediaOptions]], limit: int, most: int) -> Planned:
    """Lower the pixels of all frames to a floor, then their number, until the videos have at most `limit` tokens.

    videos: (frames, height, width, options) of each. most: frames of a video that may be used.
    """

    def tokens(cap: float, most: int) -> int:
        counts = [min(count, most) for count, *_ in videos]
        sizes = [scaling.size(n, h, w, options, cap) for n, (_, h, w, options) in zip(counts, videos, strict=True)]
        return sum(scaling.tokens(n, size) for n, size in zip(counts, sizes, strict=True))

    most = min(most, max(count for count, *_ in videos))
    if tokens(math.inf, most) <= limit:
        return Planned(math.inf, most)
    token = scaling.factor**2
    low, high = 1, max(height * width for _, height, width, _ in videos) // token + 1
    while low < high:  # the most tokens of a frame that fit; below the floor there is no difference
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens(middle * token, most) <= limit else (low, middle - 1)
    cap = low * token
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens(cap, middle) <= limit else (low, middle - 1)
    return Planned(cap, low)


def require_scalable(processor: Any, messages: Messages) -> None:
    """Refuse a size that is asked for where the processor's frames have a fixed one, or that is below one token.

    messages: opened. Raises BadRequest.
    """
    for part in (part for turn in messages for part in turn["content"] if part["type"] != "text"):
        options, of = part["options"], getattr(processor, f"{part['type']}_processor", None)
        asked = {name: value for name, value in vars(options).items() if value is not None and "pixels" in name}
        asked |= {name: getattr(options, name) for name in ("resized_height", "resized_width") if options.resized_width}
        if not asked:
            continue
        if (scaling := Scaling.of(of)) is None:
            cause = f"{type(of).__name__} has {part['type']}s of a fixed size, and takes no {next(iter(asked))}"
            raise BadRequest(cause, "leave it out")
        for name, value in asked.items():
            least = scaling.factor if name.startswith("resized") else scaling.factor**2
            if value < least and name != "min_pixels":
                cause = f"{name} {value} is less than one token, {scaling.factor}x{scaling.factor} pixels"
                raise BadRequest(cause, f"give at least {least}")


def scaled(processor: Any, messages: Messages, cap: float) -> tuple[dict[str, Any], list[str]]:
    """Scale the videos and images of messages that were read, in place, if any size is asked for or capped.

    Returns options for the processor, which then must not scale again, and what was done for the cap, in words.
    """
    kwargs: dict[str, Any] = {}
    notes = []
    for kind in ("video", "image"):
        parts = [part for turn in messages for part in turn["content"] if part["type"] == kind]
        if not any(part["options"].scales for part in parts) and (kind == "image" or cap == math.inf):
            continue
        scaling = Scaling.of(getattr(processor, f"{kind}_processor", None))
        assert scaling is not None
        for part in parts:
            frames = part["video"].frames if kind == "video" else np.asarray(part["image"])[None]
            before: tuple[int, int] = frames.shape[1:3]
            size = scaling.size(len(frames), *before, part["options"], cap, kind == "image")
            if kind == "video" and size != scaling.size(len(frames), *before, part["options"]):
                notes.append(
                    f"{part['video'].path.name} is scaled to {size[1]}x{size[0]}, from {before[1]}x{before[0]}"
                )
            frames = _resized(frames, size, scaling.resample)
            part[kind] = part[kind].with_frames(frames) if kind == "video" else frames[0]
        kwargs[f"{kind}s_kwargs"] = {"do_resize": False}
    return kwargs, notes


def shape_of(video: OpenClip | Video, frames: int) -> tuple[int, int, int]:
    """(frames, height, width) of a clip, by its header, or of frames. frames: that are wanted of a clip."""
    if isinstance(video, Video):
        return video.frames.shape[0], video.frames.shape[1], video.frames.shape[2]
    return frames, video.size[1], video.size[0]


def _resized(frames: np.ndarray, size: tuple[int, int], resample: Any) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 scaled as a transformers processor does."""
    from torchvision.transforms.v2 import functional
    from transformers.image_utils import pil_torch_interpolation_mapping

    out = np.empty((len(frames), *size, 3), np.uint8)
    for begin in range(0, len(frames), _AT_ONCE):
        some = torch.from_numpy(np.array(frames[begin : begin + _AT_ONCE])).permute(0, 3, 1, 2).contiguous()
        some = functional.resize(
            some, list(size), interpolation=pil_torch_interpolation_mapping[resample], antialias=True
        )
        out[begin : begin + _AT_ONCE] = some.permute(0, 2, 3, 1).numpy()
    return out
