"""When each frame of a clip is shown, from the timestamps a container gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median

RESET_SECONDS = 1.0
FALLBACK_INTERVAL = 1 / 25


@dataclass(frozen=True)
class Timeline:
    """The moments at which a clip's frames are shown.

    times: seconds after the first frame, one per frame in the order shown, never decreasing, the first 0.0.
    duration: seconds from the first frame to the end of the last one.
    """

    times: tuple[float, ...]
    duration: float

    @property
    def interval(self) -> float:
        """Seconds between neighbouring frames (median); the duration if there is one frame."""
        gaps = [late - early for early, late in pairwise(self.times) if late > early]
        return median(gaps) if gaps else self.duration


def build_timeline(
    stamps: Sequence[int | None], time_base: Fraction, last_duration: int | None, rate: Fraction | None
) -> Timeline:
    """The timeline of frames given in the order they are shown.

    stamps: timestamps in ticks of `time_base` seconds (None: unknown); not empty. last_duration: ticks that the last
    frame lasts, None or 0 if unknown. rate: frames per second the container claims, for where timestamps are missing.
    """
    nominal = float(1 / rate) if rate else FALLBACK_INTERVAL
    # Subtracting while the times are whole ticks keeps them free of rounding noise. A Fraction for each takes long.
    zero, ticks, of = min((stamp for stamp in stamps if stamp is not None), default=0), *time_base.as_integer_ratio()
    times = true_times([None if stamp is None else (stamp - zero) * ticks / of for stamp in stamps], nominal)
    last = float(last_duration * time_base) if last_duration and last_duration > 0 else 0.0
    return Timeline(tuple(times), times[-1] + (last or Timeline(tuple(times), times[-1] + nominal).interval))


def true_times(seconds: Sequence[float | None], interval: float) -> list[float]:
    """Timestamps made usable: starting at 0, never decreasing, each missing one an `interval` after the one before.

    Frames arrive in the order they are shown, which containers contradict in two ways. AVI has no presentation times,
    so those of clips with B-frames come shuffled: they are sorted. Clips joined end to end start again from zero (a
    jump back of more than a second): the parts are laid one after another.
    """
    pieces: list[list[float]] = []
    latest = highest = 0.0
    for index, second in enumerate(seconds):
        latest = second if second is not None else latest + interval if index else 0.0
        if not pieces or latest < highest - RESET_SECONDS:
            pieces.append([])
            highest = latest
        pieces[-1].append(latest)
        highest = max(highest, latest)
    times: list[float] = []
    for piece in pieces:
        offset = (times[-1] + interval if times else 0.0) - min(piece)
        times += [second + offset for second in sorted(piece)]
    return times
