"""Which frames of a clip to keep, chosen by time and not by index."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise

from hippo.errors import HippoError
from hippo.video.timeline import Timeline

DEFAULT_FRAMES = 16
SLACK_SECONDS = 0.001


def check_request(frames: int | None, fps: float | None) -> None:
    """Refuse a sampling request that makes no sense.

    Raises:
        HippoError: both are given, or one is not a positive number.
    """
    if frames is not None and fps is not None:
        raise HippoError("both frames and fps were given", "give only one of them")
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise HippoError(f"frames must be a whole number above zero, not {frames!r}", "ask for 1 or more")
    if fps is None:
        return
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not (0 < fps < math.inf):
        raise HippoError(f"fps must be a number above zero, not {fps!r}", "ask for 0.5 or 2, for example")


def pick(timeline: Timeline, frames: int | None, fps: float | None) -> list[int]:
    """The positions (ascending, each once) of the frames to keep.

    With `frames=N` the clip is cut into N segments of equal time and the frame on screen at the
    centre of each is kept. A frame that is on screen at several centres (variable frame rate) counts
    once and the next frames make up the number, so that N frames come back whenever the clip has N.

    With `fps=F` the frames on screen at 0, 1/F, 2/F, ... seconds are kept, each once.

    Args:
        timeline: the clip's frames.
        frames: how many frames to keep; 16 when `fps` is None too.
        fps: frames per second of true time to keep.
    """
    if fps is not None:
        return _pick_by_rate(timeline, fps)
    return _pick_by_count(timeline, DEFAULT_FRAMES if frames is None else frames)


def thin(count: int, most: int | None) -> list[int]:
    """Which of `count` things stay, evenly spread, when there may be `most`; None: all."""
    if most is None or count <= most:
        return list(range(count))
    return [(2 * index + 1) * count // (2 * most) for index in range(most)]


def _pick_by_count(timeline: Timeline, count: int) -> list[int]:
    total = len(timeline.times)
    if count >= total:
        return list(range(total))
    slack = _slack(timeline)
    picks: list[int] = []
    for segment in range(count):
        centre = (segment + 0.5) * timeline.duration / count
        on_screen = bisect_right(timeline.times, centre + slack) - 1
        earliest = picks[-1] + 1 if picks else 0
        latest = total - (count - segment)
        picks.append(min(max(on_screen, earliest), latest))
    return picks


def _pick_by_rate(timeline: Timeline, fps: float) -> list[int]:
    times = timeline.times
    slack = _slack(timeline)
    if _outpaces(timeline, fps, slack):
        return list(range(len(times)))
    picks: list[int] = []
    for index, (start, end) in enumerate(zip(times, (*times[1:], timeline.duration), strict=True)):
        sample = max(0, math.ceil((start - slack) * fps))
        if sample / fps < end - slack:
            picks.append(index)
    return picks


def _slack(timeline: Timeline) -> float:
    """Seconds by which a timestamp may be off: Matroska rounds to the millisecond."""
    return min(SLACK_SECONDS, timeline.interval / 4)


def _outpaces(timeline: Timeline, fps: float, slack: float) -> bool:
    """Whether `fps` is at least the rate of a constant-rate clip, rounding of timestamps aside."""
    times = timeline.times
    if len(times) < 2:
        return True
    gaps = [late - early for early, late in pairwise(times)]
    mean = times[-1] / len(gaps)
    return max(gaps) - min(gaps) <= 2 * slack and fps * mean >= 1 - 1e-4
