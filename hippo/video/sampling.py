"""Which frames of a clip to keep, chosen by time and not by index."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise

from hippo.errors import BadRequest
from hippo.video.timeline import Timeline

DEFAULT_FRAMES = 16
SLACK_SECONDS = 0.001  # by which a timestamp may be off: Matroska rounds to the millisecond


def check_request(frames: int | None, fps: float | None) -> None:
    """Raise BadRequest if both are given, or one is not a positive number."""
    if frames is not None and fps is not None:
        raise BadRequest("both frames and fps were given", "give only one of them")
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise BadRequest(f"frames must be a whole number above zero, not {frames!r}", "ask for 1 or more")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf):
        raise BadRequest(f"fps must be a number above zero, not {fps!r}", "ask for 0.5 or 2, for example")


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
