"""Which frames of a clip to keep, chosen by time and not by index."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise

from hippo.errors import BadRequest
from hippo.video.timeline import Timeline

DEFAULT_FRAMES = 16
SLACK_SECONDS = 0.001  # by which a timestamp may be off: Matroska rounds to the millisecond


def check_request(frames: int | None, fps: float | None, start: float = 0.0, end: float | None = None) -> None:
    """Raise BadRequest if frames and fps are both given, a value is not a positive number, or the end comes first."""
    if frames is not None and fps is not None:
        raise BadRequest("both frames and fps were given", "give only one of them")
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise BadRequest(f"frames must be a whole number above zero, not {frames!r}", "ask for 1 or more")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf):
        raise BadRequest(f"fps must be a number above zero, not {fps!r}", "ask for 0.5 or 2, for example")
    for name, value in (("video_start", start), ("video_end", end)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise BadRequest(f"{name} must be seconds from 0 on, not {value!r}", "give a number of seconds")
    if end is not None and end <= start:
        raise BadRequest(f"video_end {end:g} is not after video_start {start:g}", "end after the start")


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are wanted.

    frames, fps: see `pick`. start, end: only frames shown from `start` to `end` seconds after the clip's first frame;
    None is the clip's end. step: 0 for exactly these frames; else the count is made of whole steps of so many frames,
    as transformers' processors and qwen-vl-utils make it. least, most: bounds of the count where it follows from fps
    or from nothing, counted in whole steps too.
    """

    frames: int | None = None
    fps: float | None = None
    start: float = 0.0
    end: float | None = None
    step: int = 0
    least: int = 1
    most: int | None = None

    def pick(self, timeline: Timeline, name: str = "the clip") -> list[int]:
        """The positions (ascending, each once) of the frames to keep. Raises BadRequest if none is in the window."""
        first, stop = self._window(timeline, name)
        if (first, stop) != (0, len(timeline.times)):
            zero = timeline.times[first]
            end = timeline.times[stop] if stop < len(timeline.times) else timeline.duration
            timeline = Timeline(tuple(time - zero for time in timeline.times[first:stop]), end - zero)
        return [first + index for index in pick(timeline, *self._request(timeline))]

    @property
    def bounded(self) -> bool:
        """Whether only a part of the clip is wanted."""
        return self.start > 0 or self.end is not None

    def moments(self, timeline: Timeline, name: str) -> list[float]:
        """When the wanted frames are on screen, in seconds. timeline: may lack frames that are not near the window's
        ends."""
        first, stop = self._window(timeline, name)
        end = timeline.times[stop] if stop < len(timeline.times) else timeline.duration
        count = self._request(timeline)[0] or DEFAULT_FRAMES
        zero = timeline.times[first]
        return [zero + (segment + 0.5) * (end - zero) / count for segment in range(count)]

    def _window(self, timeline: Timeline, name: str) -> tuple[int, int]:
        if self.start >= timeline.duration:
            cause = f"video_start is {self.start:g} s and {name} ends at {timeline.duration:.1f} s"
            raise BadRequest(cause, "start before its end")
        slack = min(SLACK_SECONDS, timeline.interval / 4)
        first = bisect_left(timeline.times, self.start - slack)
        stop = len(timeline.times) if self.end is None else bisect_right(timeline.times, self.end + slack)
        # Between two frames, the one on screen.
        return (first, stop) if first < stop else (max(0, stop - 1), max(1, stop))

    def _request(self, timeline: Timeline) -> tuple[int | None, float | None]:
        if self.frames is None and self.fps is None:
            count = min(max(DEFAULT_FRAMES, self.least), self.most or max(DEFAULT_FRAMES, self.least))
            step = self.step or 1
            return (None if count == DEFAULT_FRAMES else max(step, count // step * step)), None
        if not self.step:
            return self.frames, self.fps
        wanted: float = self.frames or 0
        if self.fps is not None:
            most = min(len(timeline.times), self.most or len(timeline.times)) // self.step * self.step
            wanted = min(max(timeline.duration * self.fps + 1e-6, -(-self.least // self.step) * self.step), most)
            return max(1, int(wanted // self.step) * self.step), None
        return max(self.step, round(wanted / self.step) * self.step), None


def pick(timeline: Timeline, frames: int | None, fps: float | None) -> list[int]:
    """The positions (ascending, each once) of the frames to keep.

    With `frames=N` (16 when `fps` is None too) the clip is cut into N segments of equal time and the frame on screen at
    the centre of each is kept. A frame that is on screen at several centres (variable frame rate) counts once and the
    next frames make up the number, so that N frames come back whenever the clip has N.

    With `fps=F` the frames on screen at 0, 1/F, 2/F, ... seconds are kept, each once.
    """
    slack = min(SLACK_SECONDS, timeline.interval / 4)
    if fps is not None:
        return _pick_by_rate(timeline, fps, slack)
    total, count = len(timeline.times), frames or DEFAULT_FRAMES
    if count >= total:
        return list(range(total))
    picks: list[int] = []
    for segment in range(count):
        centre = (segment + 0.5) * timeline.duration / count
        on_screen = bisect_right(timeline.times, centre + slack) - 1
        earliest = picks[-1] + 1 if picks else 0
        picks.append(min(max(on_screen, earliest), total - (count - segment)))
    return picks


def thin(count: int, most: int | None) -> list[int]:
    """Which of `count` things stay, evenly spread, when there may be `most`; None: all."""
    if most is None or count <= most:
        return list(range(count))
    return [(2 * index + 1) * count // (2 * most) for index in range(most)]


def _pick_by_rate(timeline: Timeline, fps: float, slack: float) -> list[int]:
    times = timeline.times
    gaps = [late - early for early, late in pairwise(times)]
    # At or above the rate of a constant-rate clip, rounding of timestamps aside, every frame is kept.
    if not gaps or (max(gaps) - min(gaps) <= 2 * slack and fps * times[-1] / len(gaps) >= 1 - 1e-4):
        return list(range(len(times)))
    ends = (*times[1:], timeline.duration)
    samples = [max(0, math.ceil((start - slack) * fps)) for start in times]  # the first at or after each frame's start
    return [index for index, sample in enumerate(samples) if sample / fps < ends[index] - slack]
