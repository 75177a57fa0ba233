"""Reading a clip: a few frames with their true times, whatever the container and its health."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hippo.errors import HippoError
from hippo.video.decoding import (
    Decoded,
    Request,
    available_backends,
    decode_pyav,
    decode_torchcodec,
    torchcodec_problem,
)
from hippo.video.packets import Scan, check_file, scan_packets
from hippo.video.sampling import check_request, thin

if TYPE_CHECKING:
    from transformers.video_utils import VideoMetadata

BACKENDS = ("auto", "pyav", "torchcodec")
METADATA_CLOCK = 90_000
HEADER_SLACK = 0.5

__all__ = ["Video", "available_backends", "read_video"]


@dataclass(frozen=True, eq=False)
class Video:
    """Frames sampled from a clip.

    Attributes:
        frames: (F, H, W, 3) uint8 RGB, upright.
        timestamps: when each frame is shown, in seconds after the clip's first frame.
        duration: seconds from the clip's first frame to the end of its last one that decodes.
        source_fps: average frames per second of the clip.
        source_frames: number of frames in the clip that decode.
        path: the file.
        backend: what decoded it, "pyav" or "torchcodec".
        warnings: what the user should know, one line each, such as damage.
        asked: how many frames were to be sampled, if they are more than are here.
    """

    frames: np.ndarray = field(repr=False)
    timestamps: tuple[float, ...]
    duration: float
    source_fps: float
    source_frames: int
    path: Path
    backend: str
    warnings: tuple[str, ...] = ()
    asked: int = 0

    @property
    def wanted(self) -> int:
        """How many frames were to be sampled."""
        return max(self.asked, len(self.frames))

    def thinned(self, most: int | None) -> Video:
        """The same with at most so many of its frames, evenly spread."""
        stay = thin(len(self.frames), most)
        if len(stay) == len(self.frames):
            return self
        times = tuple(self.timestamps[index] for index in stay)
        return replace(self, frames=self.frames[stay], timestamps=times, asked=self.wanted)

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

        Pass it as `video_metadata` with `do_sample_frames=False`. Processors take a frame's time as
        its index divided by `fps`, which is wrong for a variable frame rate if the index counts
        frames. Here indices count ticks of a 90 kHz clock and `fps` is 90000, so `timestamps` are
        true to 6 microseconds, and `total_num_frames` makes `sampled_fps` the true rate of the kept
        frames.
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
    path: str | os.PathLike[str],
    *,
    frames: int | None = None,
    fps: float | None = None,
    most: int | None = None,
    backend: str = "auto",
    progress: Callable[[float], None] | None = None,
) -> Video:
    """Read frames spread uniformly over a clip (mp4, mkv, webm, avi, mpg and what else FFmpeg knows).

    Args:
        path: the file.
        frames: how many frames to keep (16 when `fps` is None too): those on screen at the centres of
            that many equal segments of the clip's time; all frames if the clip has no more.
        fps: frames to keep per second of true time: those on screen at 0, 1/fps, 2/fps, ... seconds,
            each once.
        most: if that would be more frames, so many of them, evenly spread.
        backend: "auto" (torchcodec where it works, else PyAV), "pyav" or "torchcodec".
        progress: called with the fraction done, rising to 1.0.

    Returns:
        The frames, at least one. Of a damaged clip, frames spread over the part that decodes, and a
        warning.

    Raises:
        HippoError: the request makes no sense, the file cannot be read or is not a video, no frame
            decodes, or torchcodec was demanded and does not work.
    """
    check_request(frames, fps)
    use_torchcodec = _wants_torchcodec(backend)
    path = Path(path)
    check_file(path)
    scan = scan_packets(path)
    request = Request(frames, fps, most)
    report = _Rising(progress)
    warnings: list[str] = []
    decoded: Decoded | str = decode_torchcodec(scan, request, report) if use_torchcodec else ""
    used = "torchcodec"
    if isinstance(decoded, str):
        if backend == "torchcodec":
            warnings.append(f"torchcodec did not read {path.name} ({decoded}): used PyAV")
        decoded, used = decode_pyav(scan, request, report), "pyav"
    report(1.0)
    return _video(scan, request, decoded, used, [*damage(scan, decoded), *warnings])


def _video(scan: Scan, request: Request, decoded: Decoded, backend: str, warnings: list[str]) -> Video:
    timeline = decoded.timeline
    return Video(
        frames=decoded.frames,
        timestamps=tuple(timeline.times[index] for index in decoded.picks),
        duration=timeline.duration,
        source_fps=timeline.rate,
        source_frames=len(timeline.times),
        path=scan.path,
        backend=backend,
        warnings=tuple(warnings),
        asked=len(replace(request, most=None).picks(timeline)),
    )


def _wants_torchcodec(backend: str) -> bool:
    """Whether to try torchcodec.

    Raises:
        HippoError: the backend is unknown, or is torchcodec and that cannot be used.
    """
    if backend not in BACKENDS:
        raise HippoError(f"there is no video backend {backend!r}", f"use one of {', '.join(BACKENDS)}")
    if backend == "pyav":
        return False
    problem = torchcodec_problem()
    if problem and backend == "torchcodec":
        raise HippoError(f"torchcodec cannot be used ({problem})", "use backend pyav or auto")
    return not problem


def damage(scan: Scan, decoded: Decoded) -> list[str]:
    """Warnings about the parts of a clip that are missing or do not decode."""
    name, reached = scan.path.name, decoded.timeline.duration
    short, promised = _shortfall(scan, decoded)
    if short:
        of = f" of {promised:.1f} s" if promised and f"{promised:.1f}" != f"{reached:.1f}" else ""
        return [f"{name} is damaged after {reached:.1f} s{of}: used the part that decodes"]
    if decoded.errors:
        return [f"{name} has damaged places: used the frames that decode"]
    return []


def _shortfall(scan: Scan, decoded: Decoded) -> tuple[bool, float | None]:
    """Whether the end of a clip is missing, and the seconds it should have lasted, if known."""
    reached, interval = decoded.timeline.duration, decoded.timeline.interval
    if scan.cut_off:
        # What was cut off may have been sound only.
        return scan.declared is None or reached + interval / 2 < scan.declared, scan.declared
    # Two fields stored apart are half an interval from each other; a lost frame is a whole one.
    if decoded.lost_end > 0.75 * interval:
        return True, reached + decoded.lost_end
    if scan.declared_own and scan.declared is not None:
        return reached + HEADER_SLACK < scan.declared, scan.declared
    return False, None


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
