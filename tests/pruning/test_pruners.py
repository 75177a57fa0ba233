"""Every pruner keeps what it was allowed, sorted and without repeats."""

import pytest
import torch

from hippo.errors import BadRequest
from hippo.families import VideoGrid
from hippo.pruning import PRUNERS, Signals, pruner_named
from hippo.pruning.pruners import top

GRID = VideoGrid(4, 3, 5)
# The first frame is whole; of the others, every third cell has a token, and the last frame has only one.
HOLES = VideoGrid(4, 3, 5, torch.cat([torch.arange(15), torch.arange(15, 46, 3)]))


@pytest.fixture
def signals():
    torch.manual_seed(0)
    return Signals(GRID, torch.randn(60, 8), torch.rand(60))


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5, 1.0])
def test_counts_and_order(name, ratio, signals):
    kept = PRUNERS[name].keep(signals, ratio).tolist()
    assert kept == sorted(set(kept)) and set(kept) <= set(range(60))
    assert len(kept) == (60 if name == "none" else max(1, round(ratio * 60)))


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("ratio", [0.001, 0.2, 1.0])
def test_only_cells_with_a_token_count_and_are_kept(name, ratio):
    torch.manual_seed(0)
    kept = PRUNERS[name].keep(Signals(HOLES, torch.randn(26, 8), torch.rand(26)), ratio).tolist()
    assert kept == sorted(set(kept)) and set(kept) <= set(range(26))
    assert len(kept) == (26 if name == "none" else max(1, round(ratio * 26)))


def test_a_cell_without_a_token_is_scored_like_one_that_did_not_change():
    torch.manual_seed(0)
    features, attention = torch.randn(26, 8), torch.rand(26)
    full = Signals(GRID, HOLES.laid_out(features).flatten(0, 2), HOLES.laid_out(attention).flatten())
    best = PRUNERS["hippo"].keep(full, 1 / 60)
    assert best.tolist() == HOLES.cells[PRUNERS["hippo"].keep(Signals(HOLES, features, attention), 1 / 26)].tolist()


@pytest.mark.parametrize("name", PRUNERS)
def test_scores_that_say_nothing_mean_evenly_spread_tokens_and_a_warning(name, recwarn):
    broken = Signals(GRID, torch.full((60, 8), float("nan")), torch.full((60,), float("nan")))
    kept = PRUNERS[name].keep(broken, 0.2).tolist()
    if name != "none":
        assert kept == PRUNERS["uniform"].keep(broken, 0.2).tolist()
    assert len(recwarn) == (name not in ("none", "uniform"))


def test_each_of_several_videos_keeps_its_own_share(signals):
    other = Signals(VideoGrid(2, 5, 5), torch.randn(50, 8), torch.rand(50))
    kept = PRUNERS["hippo"].keep_all_of([signals, other], 0.2)
    assert torch.equal(kept[:12], PRUNERS["hippo"].keep(signals, 0.2))
    assert torch.equal(kept[12:], PRUNERS["hippo"].keep(other, 0.2) + 60)
    assert PRUNERS["hippo"].keep_all_of([], 0.2).tolist() == []


def test_a_constant_video_is_sampled_evenly():
    still = Signals(GRID, torch.ones(60, 8), torch.full((60,), 1 / 60))
    with pytest.warns(UserWarning, match="evenly spread"):
        assert PRUNERS["hippo"].keep(still, 0.2).tolist() == PRUNERS["uniform"].keep(still, 0.2).tolist()


def test_specvlm_takes_the_most_attended_and_spreads_the_rest():
    attention = torch.full((60,), 0.4 / 58)
    attention[[7, 50]] = 0.3
    kept = PRUNERS["specvlm"].keep(Signals(GRID, torch.randn(60, 8), attention), 0.2).tolist()
    assert {7, 50} <= set(kept) and len({token // 15 for token in kept}) == 4 and len(kept) == 12


def test_attention_alone_is_taken_as_it_comes(signals):
    best = signals.attention.topk(6).indices.sort().values
    assert torch.equal(PRUNERS["attention"].keep(signals, 0.1), best)


def test_uniform_spreads_over_the_frames(signals):
    frames = PRUNERS["uniform"].keep(signals, 0.2) // 15
    assert frames.bincount(minlength=4).tolist() == [3, 3, 3, 3]


def test_hippo_uses_each_of_its_scores(signals):
    flat = Signals(GRID, torch.ones(60, 8), torch.full((60,), 1 / 60))
    special = 37
    features = flat.features.clone()
    features[special] = -1
    attention = flat.attention.clone()
    attention[special] = 0.5
    keep = PRUNERS["hippo"].keep
    assert special in keep(Signals(GRID, features, flat.attention), 0.2).tolist()
    assert special in keep(Signals(GRID, flat.features, attention), 0.05).tolist()


def test_frames_with_more_to_say_keep_more():
    assert top(torch.tensor([0.1, 0.2, 0.3, 0.4, 5, 6, 7, 8, 0.5, 0.6, 0.7, 9.0]), 4).tolist() == [5, 6, 7, 11]


def test_unknown_pruner():
    with pytest.raises(BadRequest, match=r"none, uniform, attention, specvlm, hippo, or MODULE:NAME$"):
        pruner_named("blind")
    assert pruner_named(PRUNERS["hippo"]) is PRUNERS["hippo"]
