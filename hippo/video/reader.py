"""Reading a clip: a few frames with their true times, whatever the container and its health."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hippo.errors import BadRequest, OutOfMemory
from hippo.video import torchcodec
from hippo.video.clip import Clip, Room, private
from hippo.video.frames import as_frames
from hippo.video.sampling import Sampling, check_request, thin
from hippo.video.timeline import Timeline

if TYPE_CHECKING:
    from transformers.video_utils import VideoMetadata

BACKENDS = ("auto", "pyav", "torchcodec")
METADATA_CLOCK = 90_000
DEFAULT_RATE = 2.0  # frames per second of frames in memory without times, as in qwen-vl-utils


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a clip, as `read_video` samples them, or frames that you have. Only `frames` is required.

    frames: (F, H, W, 3) uint8 RGB, upright. A torch tensor, (F, 3, H, W), floats, or a list of PIL images or arrays is
    made that. timestamps: when each frame is shown, in seconds after the clip's first frame. fps: their rate instead,
    2 by default, as in qwen-vl-utils. duration: seconds from the clip's first frame to the end of its last one that
    decodes. source_fps, source_frames: average frames per second of the clip, and how many of its frames decode. path:
    the file. backend: what decoded it, "pyav" or "torchcodec"; "" for frames that were given. warnings: what the user
    should know, one line each, such as damage. asked: how many frames were to be sampled, if they are more than are
    here. Raises BadRequest for frames or times that make no sense.
    """

    frames: Any = field(repr=False)
    timestamps: Sequence[float] = ()
    duration: float = 0.0
    source_fps: float = 0.0
    source_frames: int = 0
    path: Path = Path("frames")
    backend: str = ""
    warnings: tuple[str, ...] = ()
    asked: int = 0
    fps: float | None = None
    timed: bool = field(init=False, default=False)  # whether times or a rate were given

    def __post_init__(self) -> None:
        frames = as_frames(self.frames)
        timed = len(self.timestamps) > 0
        if self.fps is not None and (timed or not 0 < self.fps < math.inf):
            raise BadRequest(f"fps {self.fps!r} of frames in memory" + " with timestamps" * timed, "give one of them")
        times = tuple(map(float, self.timestamps)) or tuple(i / (self.fps or DEFAULT_RATE) for i in range(len(frames)))
        if len(times) != len(frames):
            raise BadRequest(f"{len(frames)} frames have {len(times)} timestamps", "give one for each frame")
        if not all(0 <= early <= late < math.inf for early, late in pairwise((0.0, *times))):
            raise BadRequest("the frames' timestamps are not in order from 0 on", "give seconds, ascending")
        interval = (times[-1] - times[0]) / (len(times) - 1) if times[-1] > times[0] else 1 / (self.fps or DEFAULT_RATE)
        duration = self.duration or times[-1] + interval
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "timestamps", times)
        object.__setattr__(self, "duration", duration)
        object.__setattr__(self, "source_fps", self.source_fps or len(times) / duration)
        object.__setattr__(self, "timed", timed or self.fps is not None)
        object.__setattr__(self, "source_frames", self.source_frames or len(times))

    @classmethod
    def of(cls, frames: Any, metadata: Any) -> Video:
        """Frames with the metadata that vLLM and transformers have beside them: `fps` of the source, `frames_indices`
        in it or `total_num_frames`, as a dict or a `VideoMetadata`. Raises BadRequest."""
        known = metadata if isinstance(metadata, Mapping) else vars(metadata)
        rate, indices = known.get("fps"), known.get("frames_indices")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
            raise BadRequest(f"the video's metadata has fps {rate!r}", "give frames per second, above zero")
        frames = as_frames(frames)
        if indices is None:
            stride = (known.get("total_num_frames") or len(frames)) / len(frames)
            indices = [stride * index for index in range(len(frames))]
        return cls(frames, [index / rate for index in indices], duration=float(known.get("duration") or 0.0))

    @property
    def wanted(self) -> int:
        """How many frames were to be sampled."""
        return max(self.asked, len(self.frames))

    def thinned(self, most: int | None) -> Video:
        """The same with at most so many of its frames, evenly spread."""
        stay = thin(len(self.frames), most)
        return self if len(stay) == len(self.frames) else replace(self.only(stay), asked=self.wanted)

    def only(self, stay: Sequence[int]) -> Video:
        """The same with only the frames at these positions."""
        times = tuple(self.timestamps[index] for index in stay)
        return replace(self, frames=self.frames[list(stay)], timestamps=times, asked=0, fps=None)

    def with_frames(self, frames: np.ndarray) -> Video:
        """The same with its frames replaced, one by one."""
        return replace(self, frames=frames, fps=None)

    def timeline(self) -> Timeline:
        """When each frame is shown."""
        return Timeline(tuple(self.timestamps), max(self.duration, self.timestamps[-1] + 1e-3))

    @property
    def sampled_fps(self) -> float:
        """Average rate of the kept frames per second of true time; of one frame, 1 / duration."""
        span = self.timestamps[-1] - self.timestamps[0]
        if span <= 0:
            return len(self.timestamps) / self.duration
        return (len(self.timestamps) - 1) / span

    @property
    def metadata(self) -> VideoMetadata:
        """What a transformers video processor needs to know the frames' true times.

        Pass it as `video_metadata` with `do_sample_frames=False`. Processors take a frame's time as its index divided
        by `fps`, which is wrong for a variable frame rate if the index counts frames. Here indices count ticks of a
        90 kHz clock and `fps` is 90000, so `timestamps` are true to 6 microseconds, and `total_num_frames` makes
        `sampled_fps` the true rate of the kept frames.
        """
        from transformers.video_utils import VideoMetadata

        kept, height, width, _ = self.frames.shape
        return VideoMetadata(
            total_num_frames=max(1, round(kept * METADATA_CLOCK / self.sampled_fps)),
            fps=float(METADATA_CLOCK),
            width=width,
            height=height,
            duration=self.duration,
            video_backend=self.backend,
            frames_indices=[round(seconds * METADATA_CLOCK) for seconds in self.timestamps],
        )


def read_video(
    source: str | os.PathLike[str] | Clip,
    *,
    frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    most: int | None = None,
    backend: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> Video:
    """Read frames spread uniformly over a clip (mp4, mkv, webm, avi, mpg and what else FFmpeg knows).

    source: the file, or a `Clip` opened from it, which can be read again without reading the file again. frames: how
    many frames to keep (16 when `fps` is None too): those on screen at the centres of that many equal segments of the
    clip's time; all frames if the clip has no more. fps: frames to keep per second of true time: those on screen at 0,
    1/fps, 2/fps, ... seconds, each once. start, end: of the part to read, in seconds after the clip's first frame.
    most: if that would be more frames, so many of them, evenly spread. backend: "auto" (torchcodec where it works, else
    PyAV), "pyav" or "torchcodec". progress: called with the fraction done, rising to 1.0.

    Returns at least one frame; of a damaged clip, frames spread over the part that decodes, and a warning. Raises
    BadRequest if the request makes no sense or torchcodec was demanded and does not work, MediaError if the file cannot
    be read, is not a video or has no frame that decodes, OutOfMemory if the frames do not fit.
    """
    check_request(frames, fps, start, end)
    return sample(source, Sampling(frames, fps, start, end), most=most, backend=backend, progress=progress)


def sample(
    source: str | os.PathLike[str] | Clip,
    sampling: Sampling,
    *,
    most: int | None = None,
    backend: str = "auto",
    progress: Callable[[float], None] | None = None,
    room: Room = private,
) -> Video:
    """`read_video`, with what is wanted in one object, already checked. room: where PyAV's frames are put."""
    wants_torchcodec = _wants_torchcodec(backend)
    report, warnings = _Rising(progress), list[str]()
    images: np.ndarray | str = "the clip is damaged or its timestamps need repair"
    try:
        clip = source.for_sampling(sampling) if isinstance(source, Clip) else Clip(Path(source), sampling)

        def choose(timeline: Timeline, most: int | None = most) -> list[int]:
            picks = sampling.pick(timeline, clip.path.name)
            return [picks[index] for index in thin(len(picks), most)]

        if wants_torchcodec and clip.trusted:
            picks, used = choose(clip.timeline()), "torchcodec"
            images = clip.decode_torchcodec(picks, report)
        if isinstance(images, str):
            if backend == "torchcodec":
                warnings.append(f"torchcodec did not read {clip.path.name} ({images}): used PyAV")
            (images, picks), used = clip.decode(choose, report, room), "pyav"
    except MemoryError as error:
        name = source.path.name if isinstance(source, Clip) else source
        raise OutOfMemory(f"{name} needs more memory than is free", "ask for fewer frames") from error
    report(1.0)
    timeline = clip.timeline()
    return Video(
        frames=images,
        timestamps=tuple(timeline.times[index] for index in picks),
        duration=timeline.duration,
        source_fps=clip.frame_count / timeline.duration,
        source_frames=clip.frame_count,
        path=clip.path if isinstance(clip.path, Path) else Path(clip.path.name),
        backend=used,
        warnings=(*clip.damage(), *warnings),
        asked=len(choose(timeline, None)),
    )


def _wants_torchcodec(backend: str) -> bool:
    """Whether to try torchcodec. Raises BadRequest if it cannot be used and nothing else will do."""
    if backend not in BACKENDS:
        raise BadRequest(f"there is no video backend {backend!r}", f"use one of {', '.join(BACKENDS)}")
    problem = torchcodec.problem() if backend != "pyav" else ""
    if problem and backend == "torchcodec":
        raise BadRequest(f"torchcodec cannot be used ({problem})", "use backend pyav or auto")
    return backend != "pyav" and not problem


class _Rising:
    """Passes on the fraction done when it has risen by a hundredth, so never backwards."""

    def __init__(self, progress: Callable[[float], None] | None) -> None:
        self.progress = progress
        self.done = 0.0

    def __call__(self, done: float) -> None:
        if self.progress is None or done <= self.done or (done < 1.0 and done - self.done < 0.01):
            return
        # Noted only afterwards: a callback that raises to stop the reading is then asked again, even
        # if torchcodec's failure handling has caught what it raised.
        self.progress(done)
        self.done = done
