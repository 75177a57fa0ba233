"""Timestamps as containers give them, turned into true times."""

from fractions import Fraction

import pytest

from hippo.video.timeline import Timeline, build_timeline, true_times


def test_times_count_from_the_first_frame():
    timeline = build_timeline([48600, 52200, 59400], Fraction(1, 90000), 3600, None)
    assert timeline.times == (0.0, 0.04, 0.12)
    assert timeline.duration == pytest.approx(0.16)


def test_unknown_last_duration_is_the_usual_gap():
    assert build_timeline([0, 10, 20, 90], Fraction(1, 100), None, None).duration == pytest.approx(1.0)


def test_frames_without_timestamps_follow_the_claimed_rate():
    timeline = build_timeline([None] * 4, Fraction(1, 1000), None, Fraction(8))
    assert timeline.times == (0.0, 0.125, 0.25, 0.375)
    assert timeline.duration == pytest.approx(0.5)


def test_missing_timestamp_comes_an_interval_after_the_one_before():
    assert true_times([5.0, None, 5.5], 0.25) == [0.0, 0.25, 0.5]


def test_shuffled_timestamps_are_sorted():
    assert true_times([0.1, 0.4, 0.3, 0.2], 0.1) == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_joined_clips_are_laid_one_after_another():
    assert true_times([3.0, 4.0, 5.0, 3.0, 4.0], 1.0) == pytest.approx([0.0, 1.0, 2.0, 3.0, 4.0])


def test_interval_is_the_usual_gap():
    timeline = Timeline((0.0, 0.1, 0.2, 0.3, 1.6), 2.0)
    assert timeline.interval == pytest.approx(0.1)


def test_single_frame_lasts_the_claimed_interval():
    timeline = build_timeline([7], Fraction(1, 10), None, Fraction(5))
    assert (timeline.times, timeline.duration, timeline.interval) == ((0.0,), 0.2, 0.2)
