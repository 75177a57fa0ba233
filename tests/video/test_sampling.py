"""Which frames are picked from a timeline."""

import math

import pytest

from hippo.errors import HippoError
from hippo.video.sampling import Sampling, check_request, pick
from hippo.video.timeline import Timeline


def even(count: int, rate: float) -> Timeline:
    return Timeline(tuple(index / rate for index in range(count)), count / rate)


def rounded(count: int, rate: float) -> Timeline:
    """An even timeline as Matroska stores it, in whole milliseconds."""
    return Timeline(tuple(round(index / rate, 3) for index in range(count)), round(count / rate, 3))


def test_count_picks_the_centre_of_each_segment():
    assert pick(even(100, 10), 4, None) == [12, 37, 62, 87]
    assert pick(even(100, 10), 1, None) == [50]


def test_sixteen_frames_unless_told():
    assert pick(even(160, 10), None, None) == [10 * segment + 5 for segment in range(16)]


def test_count_beyond_the_clip_takes_every_frame_once():
    assert pick(even(3, 10), 8, None) == [0, 1, 2]
    assert pick(even(3, 10), 3, None) == [0, 1, 2]


def test_count_goes_by_time_when_the_rate_varies():
    # Ten frames in the first second, then one a second.
    times = tuple(index / 10 for index in range(10)) + tuple(float(second) for second in range(1, 10))
    assert pick(Timeline(times, 10.0), 5, None) == [10, 12, 14, 16, 18]


def test_count_gives_different_frames_even_around_a_long_still():
    still = Timeline((0.0, 9.0, 9.1, 9.2, 9.3, 9.4), 10.0)
    assert pick(still, 4, None) == [0, 1, 2, 3]
    held = Timeline((0.0, 0.1, 0.2, 0.3, 0.4, 0.5), 10.0)
    assert pick(held, 4, None) == [2, 3, 4, 5]


@pytest.mark.parametrize("fps, expected", [(2.0, [0, 5, 10, 15, 20]), (4.0, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22])])
def test_rate_picks_what_is_on_screen_at_each_sample(fps, expected):
    assert pick(even(25, 10), None, fps) == expected


@pytest.mark.parametrize("rate", [10, 24, 25, 29.97, 30, 59.94])
@pytest.mark.parametrize("factor", [1.0, 1.003, 1.5, 4.0])
def test_rate_at_or_above_the_clips_own_takes_every_frame_once(rate, factor):
    for timeline in (even(300, rate), rounded(300, rate)):
        assert pick(timeline, None, rate * factor) == list(range(300))


def test_rate_is_of_true_time_when_timestamps_are_rounded():
    assert pick(rounded(300, 30), None, 10.0) == list(range(0, 300, 3))
    assert pick(rounded(299, 29.97), None, 29.97 / 2) == list(range(0, 299, 2))


def test_rate_skips_bursts_and_keeps_a_still_once():
    times = (0.0, 0.01, 0.02, 0.03, 2.0, 2.5, 2.55)
    assert pick(Timeline(times, 3.0), None, 2.0) == [0, 3, 4, 5]


def test_rate_below_one_frame_per_clip_keeps_the_first():
    assert pick(even(20, 10), None, 0.01) == [0]
    assert pick(even(1, 10), None, 5.0) == [0]


@pytest.mark.parametrize("frames", [0, -1, 2.5, True, "8"])
def test_senseless_count_is_refused(frames):
    with pytest.raises(HippoError, match="frames must be"):
        check_request(frames, None)


@pytest.mark.parametrize("fps", [0, -1.0, math.nan, math.inf, True, "2"])
def test_senseless_rate_is_refused(fps):
    with pytest.raises(HippoError, match="fps must be"):
        check_request(None, fps)


def test_both_at_once_are_refused():
    with pytest.raises(HippoError, match="only one"):
        check_request(8, 2.0)


@pytest.mark.parametrize(
    ("bounds", "count"),
    [({}, 16), ({"most": 4}, 4), ({"most": 5, "step": 2}, 4), ({"least": 20}, 20), ({"most": 40}, 16),
     ({"least": 21, "step": 2}, 20), ({"most": 1, "step": 2}, 2)],
)  # fmt: skip
def test_bounds_count_where_neither_frames_nor_a_rate_is_asked_for(bounds, count):
    assert len(Sampling(**bounds).pick(even(100, 10.0))) == count
