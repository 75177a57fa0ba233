"""Every pruner keeps what it was allowed, sorted and without repeats."""

import pytest
import torch

from hippo.errors import HippoError
from hippo.families import VideoGrid
from hippo.keep import PRUNERS, Signals, pruner_named

GRID = VideoGrid(4, 3, 5)


@pytest.fixture
def signals():
    torch.manual_seed(0)
    return Signals(GRID, torch.randn(60, 8), torch.rand(60))


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5, 1.0])
def test_counts_and_order(name, ratio, signals):
    kept = PRUNERS[name].keep(signals, ratio).tolist()
    assert kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < 60
    assert len(kept) == (60 if name == "none" else max(1, round(ratio * 60)))


def test_uniform_spreads_over_the_frames(signals):
    frames = PRUNERS["uniform"].keep(signals, 0.2) // 15
    assert frames.bincount(minlength=4).tolist() == [3, 3, 3, 3]


def test_hippo_listens_to_each_of_its_scores(signals):
    flat = Signals(GRID, torch.ones(60, 8), torch.full((60,), 1 / 60))
    special = 37
    features = flat.features.clone()
    features[special] = -1
    attention = flat.attention.clone()
    attention[special] = 0.5
    keep = PRUNERS["hippo"].keep
    assert special in keep(Signals(GRID, features, flat.attention), 0.2).tolist()
    assert special in keep(Signals(GRID, flat.features, attention), 0.05).tolist()


def test_unknown_pruner():
    with pytest.raises(HippoError, match="none, uniform, hippo"):
        pruner_named("nope")
