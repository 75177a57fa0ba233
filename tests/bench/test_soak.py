"""Clients that ask a server for a while."""

from itertools import count
from pathlib import Path

import pytest

from hippo.bench.clients import Answered
from hippo.bench.soak import ends, soak
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
    monkeypatch.setattr("hippo.bench.soak.write_clips", lambda *_: [Path("clip.mp4")])
    calls = count()

    def ask(clip, tokens):
        number = next(calls)
        if number == 1:  # the first after the one that warms up
            raise HippoError("it failed")
        return Answered(f"answer {number}", tokens, 0.0, 0.0)

    found = soak(ask, 2, 1.0, 5, lambda: 7, None, lambda what, share: None)
    assert found["errors"] == {"HippoError: it failed": 1} and found["answers"] >= 2 and found["tokens_a_second"] > 0
    assert not found["same_texts"] and found["growth"] == 0 and found["speed_over_library"] is None
