"""Clients that ask a server for a while."""

import threading

import pytest

from hippo.bench.clients import Answered
from hippo.bench.soak import CLIPS, ends, soak
from hippo.errors import HippoError


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(600, (60, 600)), (90, (30, 90))],
)
def test_memory_is_compared_between_the_first_minute_and_the_last(seconds, expected):
    """Of what is as many bytes as seconds have passed."""
    first, last = ends([(second, second) for second in range(seconds + 1)], seconds)
    width, end = expected
    assert first == width // 2 and last == end - width // 2


def test_memory_that_is_not_known():
    assert ends([], 60) == (None, None)


def test_errors_are_counted_and_other_words_noticed(monkeypatch):
    monkeypatch.setattr(
        "hippo.bench.soak.write_clips", lambda folder, count, seed: [folder / f"{place}" for place in range(count)]
    )
    asked, warm, lock = [], 2, threading.Lock()

    def ask(clip, tokens):
        with lock:
            asked.append(clip)
        if len(asked) > warm and clip == asked[warm]:
            raise HippoError("it failed")
        text = "other words" if asked.count(clip) == 4 else "words"
        return Answered(text, tokens, 0.0, 0.0)

    found = soak(ask, 2, 1.0, 5, lambda: 7, None, lambda what, share: None)
    assert list(found["errors"]) == ["HippoError: it failed"] and found["answers"] > 3 * CLIPS
    assert not found["same_texts"] and found["growth"] == 0 and found["speed_over_library"] is None
