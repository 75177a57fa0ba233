"""The search for the best tokens."""

import torch

from hippo.bench.oracle import search

WANTED = {3, 8, 21, 34, 55}


def merit(kept):
    return len(WANTED & set(kept.tolist()))


def test_it_finds_what_its_starts_hold_between_them():
    starts = [torch.tensor([3, 8, 9, 10, 11]), torch.tensor([1, 2, 21, 34, 55])]
    best = search(starts, merit, 400, seed=1)
    assert best.tolist() == sorted(WANTED)


def test_it_is_never_worse_than_the_best_start_and_keeps_as_many():
    starts = [torch.tensor([3, 8, 21, 34, 40]), torch.tensor([0, 1, 2, 4, 5])]
    for seed in range(20):
        best = search(starts, merit, 3, seed)
        assert merit(best) >= 4 and len(set(best.tolist())) == 5 and best.tolist() == sorted(best.tolist())


def test_one_start_that_holds_everything_stays():
    assert search([torch.arange(60)], merit, 10, 0).tolist() == list(range(60))
