"""Every pruner keeps what it was allowed, sorted and without repeats."""

import numpy as np
import pytest
import torch

from hippo.errors import BadRequest, MediaError
from hippo.families import VideoGrid
from hippo.pruning import PRUNERS, Pruner, Signals, pruner_named
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


def kept_by(keep, signals, ratio=0.1):
    return Pruner("mine", keep).keep_all_of([signals, signals], ratio)


@pytest.mark.parametrize("of", [list, np.array, torch.tensor])
def test_a_pruner_of_ones_own_returns_indices_or_a_mask(of, signals):
    kept, mask = [1, 5, 59], [place in (1, 5, 59) for place in range(60)]
    for returned in (of(kept), of(mask), torch.tensor(kept, dtype=torch.uint8)):
        both = kept_by(lambda signals, keep_ratio, returned=returned: returned, signals)
        assert both.tolist() == [1, 5, 59, 61, 65, 119] and both.dtype is torch.int64


def test_a_pruner_of_ones_own_may_keep_nothing(signals):
    for nothing in ([], torch.arange(0), torch.zeros(60, dtype=torch.bool)):
        assert kept_by(lambda signals, keep_ratio, nothing=nothing: nothing, signals).tolist() == []


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (None, "returned NoneType, neither indices nor a mask"),
        ("all", "returned str, neither"),
        ([[1, 2], [3]], "returned list, neither"),
        ([1.0, 2.0], "returned float32, neither"),
        ([[1, 2]], r"indices of shape \(1, 2\)"),
        (torch.tensor(3), r"indices of shape \(\)"),
        ([2, 1], "not sorted, or repeat"),
        ([2, 2], "not sorted, or repeat"),
        ([-1, 2], "out of range: -1 to 2 of 60"),
        ([2, 60], "out of range: 2 to 60 of 60"),
        ([1 << 70], "returned list, neither"),
        (torch.ones(59, dtype=torch.bool), r"a mask of shape \(59,\) for 60"),
        (torch.ones(60, dtype=torch.bool), "kept 60 of 60 video tokens, and keep_ratio allows 6"),
        (list(range(7)), "kept 7 of 60 video tokens, and keep_ratio allows 6"),
    ],
)
def test_what_a_pruner_of_ones_own_may_not_return(returned, problem, signals):
    with pytest.raises(BadRequest, match=f"^pruner 'mine' .*{problem}") as error:
        kept_by(lambda signals, keep_ratio: returned, signals)
    assert "\n" not in str(error.value)


def test_a_pruner_of_ones_own_that_fails_is_named(signals):
    def fails(signals, keep_ratio):
        raise IndexError("one\ntwo")

    with pytest.raises(BadRequest, match=r"^pruner 'mine' failed \(IndexError: one two\)"):
        kept_by(fails, signals)

    def refuses(signals, keep_ratio):
        raise MediaError("too dark")

    with pytest.raises(MediaError, match=r"^too dark$"):
        kept_by(refuses, signals)

    def hungry(signals, keep_ratio):
        raise MemoryError

    with pytest.raises(MemoryError):
        kept_by(hungry, signals)
