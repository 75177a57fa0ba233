"""Replaying against the real serial decoder, and by hand."""

import pytest
import torch

from hippo.bench.replay import Counts, replay
from hippo.families import family_of
from hippo.forward import CachedModel
from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from hippo.pruning import pruner_named
from hippo.sequence import Sequence
from hippo.stats import Stats
from tests.drafts import draft
from tests.models import inputs, model


def test_by_hand():
    assert replay([True] * 6, gamma=2, room=99) == Counts(6, 2, 4, 4, 0)
    assert replay([False] * 3, gamma=2, room=99) == Counts(3, 3, 3, 0, 3)
    assert replay([True, False, True, True], gamma=3, room=99) == Counts(4, 2, 4, 3, 1)
    assert replay([True], gamma=5, room=1) == Counts(1, 1, 1, 1, 0)
    assert replay([], gamma=5, room=9) == Counts()


@pytest.mark.parametrize("gamma", [1, 3, 8])
@pytest.mark.parametrize("limit", [17, 40])
@pytest.mark.usefixtures("patient_targets")
def test_it_counts_what_the_decoder_counts(gamma, limit):
    of, request = Pair(model("qwen2_5_vl"), Draft(draft("other"))), inputs("qwen2_5_vl")
    stats = Stats()
    options = SamplingParams.of(decoder="serial", pruner="uniform", keep_ratio=0.2, gamma=gamma, max_new_tokens=limit)
    tokens = [token for part in Sequence(of, request, options, stats) for token in part]
    of.close()
    prompt, (signals,) = of.look(request)
    stays = prompt.keep(pruner_named("uniform").keep(signals, 0.2))
    small = draft("other")
    family = family_of(small)
    reader = CachedModel.of(family, small)
    with torch.no_grad():
        reader.prefill(family.embed(small, request)[stays], prompt.positions[:, stays], prompt.next_position)
    proposed = reader.extend(tokens[:-1]).argmax(-1).tolist()
    counted = replay([a == b for a, b in zip(proposed, tokens[1:], strict=True)], gamma, limit - 1)
    assert counted.tokens == len(tokens) - 1
    assert (counted.forwards, counted.checked, counted.accepted, counted.rejections) == (
        stats.target_forwards, stats.checked, stats.accepted, stats.rejections,
    )  # fmt: skip
