"""Damaged clips of nine formats give frames or one line. More of them: python -m tests.video.fuzz."""

from collections import Counter

from .fuzz import fuzz


def test_damaged_clips_give_frames_or_one_line():
    results = list(fuzz(count=150, seed=0))
    assert [result for result in results if result[2].startswith("FAILED")] == []
    assert Counter(outcome for *_, outcome in results)["frames"] > 50
