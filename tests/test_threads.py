"""Dividing cores."""

import torch

from hippo import threads


def test_the_two_never_want_more_than_there_is(monkeypatch):
    for count in (1, 2, 4, 16):
        monkeypatch.setattr(threads, "cores", lambda count=count: count)
        target, draft = threads.shares()
        assert target >= 1 <= draft and target + draft <= max(2, count) and target >= draft


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with threads.threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
