"""Dividing cores."""

import torch

from hippo import threads


def test_the_two_never_want_more_than_there_is(monkeypatch):
    for count in (1, 2, 4, 16):
        monkeypatch.setattr(threads, "cores", lambda count=count: count)
        target, draft = threads.shares()
        assert target >= 1 <= draft and target + draft <= max(2, count) and target >= draft


def test_a_limit_on_threads_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    assert threads.cores() == 1 and threads.shares() == (1, 1)


def test_what_is_shared_is_put_back(monkeypatch):
    monkeypatch.setattr(threads, "shares", lambda: (1, 1))
    before = torch.get_num_threads()
    with threads.sharing(True) as share:
        share(True)
        assert torch.get_num_threads() == 1
        share(False)
        assert torch.get_num_threads() == before
        share(True)
    assert torch.get_num_threads() == before
    with threads.sharing(False) as share:
        share(True)
        assert torch.get_num_threads() == before


def test_two_at_once_closed_in_any_order(monkeypatch):
    monkeypatch.setattr(threads, "shares", lambda: (1, 1))
    before = torch.get_num_threads()
    first, second = threads.sharing(True), threads.sharing(True)
    first.__enter__()(True)
    second.__enter__()(True)
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == before
