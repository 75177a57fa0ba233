"""Ablations keep what they were allowed, sorted and without repeats, and leave out what they say."""

import pytest
import torch

from hippo.bench.pruners import ABLATIONS, debiased_attention_score, pruner_named, spend_once, spend_with_floor
from hippo.errors import BadRequest
from hippo.families import VideoGrid
from hippo.pruning import PRUNERS, Signals, pruners
from hippo.pruning.attention import attention_score

GRID = VideoGrid(4, 3, 5)
HOLES = VideoGrid(4, 3, 5, torch.cat([torch.arange(15), torch.arange(15, 46, 3)]))
SMALL = VideoGrid(3, 2, 2)


@pytest.fixture
def signals():
    torch.manual_seed(0)
    return Signals(GRID, torch.randn(60, 8), torch.rand(60))


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("ratio", [0.001, 0.2, 1.0])
@pytest.mark.parametrize("grid", [GRID, HOLES])
def test_counts_and_order(name, ratio, grid):
    torch.manual_seed(0)
    count = grid.tokens
    kept = ABLATIONS[name].keep(Signals(grid, torch.randn(count, 8), torch.rand(count)), ratio).tolist()
    assert kept == sorted(set(kept)) and set(kept) <= set(range(count))
    assert len(kept) == (0 if name == "blind" else max(1, round(ratio * count)))


@pytest.mark.parametrize("name", ABLATIONS)
def test_scores_that_say_nothing_mean_evenly_spread_tokens_and_a_warning(name, recwarn):
    broken = Signals(GRID, torch.full((60, 8), float("nan")), torch.full((60,), float("nan")))
    kept = ABLATIONS[name].keep(broken, 0.2).tolist()
    if name not in ("blind", "random"):
        assert kept == PRUNERS["uniform"].keep(broken, 0.2).tolist()
    assert len(recwarn) == (name not in ("blind", "random"))


@pytest.mark.parametrize("left_out", ["attention", "temporal", "spatial"])
def test_a_score_that_is_left_out_does_not_count(left_out, signals, monkeypatch):
    keep = ABLATIONS[f"hippo-without-{left_out}"].keep
    before = keep(signals, 0.2)
    if left_out == "attention":
        assert torch.equal(keep(Signals(GRID, signals.features, None), 0.2), before)
    else:
        monkeypatch.setattr(pruners, f"{left_out}_score", lambda *_: pytest.fail("computed"))
        assert torch.equal(keep(signals, 0.2), before)


def test_per_frame_does_not_see_a_frames_level(signals):
    keep = ABLATIONS["hippo-per-frame"].keep
    level = torch.tensor([0.0, 9.0, -9.0, 3.0]).repeat_interleave(15)
    assert torch.equal(keep(signals, 0.2), keep(Signals(GRID, signals.features, signals.attention + level), 0.2))


def test_a_floor_gives_every_frame_its_share():
    fused = torch.tensor([0.1, 0.2, 0.3, 0.4, 5, 6, 7, 8, 0.5, 0.6, 0.7, 9.0])
    assert spend_with_floor(fused, 6, SMALL, 0.5).tolist() == [3, 4, 5, 6, 7, 11]


def test_of_tokens_that_look_the_same_the_best_is_kept():
    fused, features = torch.arange(12.0), torch.eye(12)
    features[8:11] = features[11].clone()
    assert spend_once(fused, features, 3).tolist() == [6, 7, 11]
    assert spend_once(fused, torch.ones(12, 5), 3).tolist() == [9, 10, 11], "nothing else is left"


def test_debiased_attention_is_that_of_the_later_queries_less_that_of_the_first():
    torch.manual_seed(0)
    queries, keys = torch.randn(6, 5, 8), torch.randn(2, 11, 8)
    score = debiased_attention_score(queries, keys, 0.3)
    later, first = attention_score(queries[:, 1:], keys, 0.3), attention_score(queries[:, :1], keys, 0.3)
    assert torch.equal(score, later - first)
    assert debiased_attention_score(queries[:, :1], keys, 0.3).tolist() == [0.0] * 11


def test_names():
    assert pruner_named("blind") is ABLATIONS["blind"] and pruner_named("hippo") is PRUNERS["hippo"]
    assert not set(ABLATIONS) & set(PRUNERS)
    with pytest.raises(BadRequest, match=r"none, uniform, .*hippo-without-spatial$"):
        pruner_named("nope")
