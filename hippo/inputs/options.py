"""How a video or an image is sampled and scaled: keys of a message's part, or options of a whole request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from hippo.errors import BadRequest, unknown
from hippo.video import Sampling, check_request

_WHOLE = ("num_frames", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels")
_COUNTS = ("frames", "num_frames", "fps")
_PIXELS = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
IMAGE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
VIDEO_KEYS = (
    *("nframes", "num_frames", "fps", "sample_fps", "min_frames", "max_frames", "video_start", "video_end"),
    *_PIXELS,
)


class MediaKeys(TypedDict, total=False):
    """What `MediaOptions.of` takes, with qwen-vl-utils' name `nframes` for `num_frames`."""

    nframes: int
    num_frames: int
    min_frames: int
    max_frames: int
    video_start: float
    video_end: float
    min_pixels: int
    max_pixels: int
    total_pixels: int
    resized_height: int
    resized_width: int
    processor_kwargs: Mapping[str, Any]
    fetch: bool


@dataclass(frozen=True)
class MediaOptions:
    """How the videos and images of a request, or one of them, are sampled and scaled.

    Args:
        frames: exactly so many frames.
        num_frames: the same, in whole steps of the model's time (2 frames for Qwen), as its processor counts.
        fps: frames a second. min_frames, max_frames: bounds of their number; with them, and in a message's part, it is
            counted in whole steps too, as qwen-vl-utils does.
        sample_fps: the rate of frames that are in memory.
        video_start, video_end: seconds after the first frame, of the part to read.
        min_pixels, max_pixels: of one frame after scaling. total_pixels: of all frames of one video, as two frames of a
            step count once. resized_height, resized_width: exactly this size, but for rounding to whole tokens.
        processor_kwargs: passed to the processor as they are.
        fetch: whether http:// and https:// may be fetched.
    """

    frames: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    sample_fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    processor_kwargs: Mapping[str, Any] | None = None
    fetch: bool = True
    whole_steps: bool = False

    def __post_init__(self) -> None:
        for name in (*_WHOLE, "resized_height", "resized_width"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise BadRequest(f"{name} must be a whole number above zero, not {value!r}", "give one")
        counts = [name for name in _COUNTS if getattr(self, name) is not None]
        if len(counts) > 1:
            raise BadRequest(f"both {counts[0]} and {counts[1]} were given", "give only one of them")
        check_request(self.frames, self.fps, self.video_start or 0.0, self.video_end)
        if self.video_start is not None:
            check_request(None, None, self.video_start)
        for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
            if (getattr(self, low) or 0) > (getattr(self, high) or math.inf):
                cause = f"{low} {getattr(self, low)} is above {high} {getattr(self, high)}"
                raise BadRequest(cause, "swap them, or leave one out")
        if (self.resized_height is None) != (self.resized_width is None):
            raise BadRequest("only one of resized_height and resized_width was given", "give both")

    @classmethod
    def of(cls, keys: Mapping[str, Any], known: tuple[str, ...] = VIDEO_KEYS) -> dict[str, Any]:
        """Fields of `MediaOptions` from a part's keys. Raises BadRequest; an unknown key's names the nearest."""
        given: dict[str, Any] = {}
        for name, value in keys.items():
            if name not in known:
                raise unknown("key", name, known)
            field = "num_frames" if name == "nframes" else name
            if field in given:
                raise BadRequest(f"{field} is given twice", "give it once")
            given[field] = value
        return given

    def with_keys(self, keys: Mapping[str, Any], known: tuple[str, ...] = VIDEO_KEYS) -> MediaOptions:
        """The options of one part: its keys, and the request's where it has none. Raises BadRequest."""
        if not (given := self.of(keys, known)):
            return self
        if any(name in given for name in _COUNTS):
            given = dict.fromkeys(_COUNTS) | given
        if any(name in given for name in ("resized_height", "resized_width")):
            given = dict.fromkeys(_PIXELS) | given
        return replace(self, whole_steps=True, **given)

    @property
    def scales(self) -> bool:
        """Whether the size of the frames is asked for."""
        return any(getattr(self, name) is not None for name in _PIXELS)

    def sampling(self, video_processor: Any = None) -> Sampling:
        """Which frames to read. video_processor: counts them in steps; None: a step is one frame."""
        steps = self.whole_steps or any((self.num_frames, self.min_frames, self.max_frames))
        most = getattr(video_processor, "max_frames", None)
        return Sampling(
            self.frames or self.num_frames,
            self.fps,
            self.video_start or 0.0,
            self.video_end,
            step=(getattr(video_processor, "temporal_patch_size", None) or 1) if steps and self.frames is None else 0,
            least=self.min_frames or getattr(video_processor, "min_frames", None) or 1,
            most=self.max_frames or (most if steps else None),
        )


def split_options(options: Mapping[str, Any]) -> tuple[MediaOptions, dict[str, Any]]:
    """The `MediaOptions` among keyword arguments, and the others. Raises BadRequest."""
    names = tuple(MediaKeys.__annotations__)
    ours = {name: value for name, value in options.items() if name in names}
    return MediaOptions(**MediaOptions.of(ours, names)), {k: v for k, v in options.items() if k not in names}
