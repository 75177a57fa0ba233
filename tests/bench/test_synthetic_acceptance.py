"""Verdicts drawn at a rate: as often as asked, the same for every method, and only those."""

from contextlib import closing

import pytest

from hippo.bench.synthetic_acceptance import SyntheticPair, accepts
from hippo.pair import Draft
from hippo.params import SamplingParams
from hippo.stats import Stats
from tests.models import inputs, model

pytestmark = pytest.mark.usefixtures("patient_targets")


def answer(rate, **options):
    with closing(SyntheticPair(model("qwen2_5_vl"), Draft(model("qwen2_5_vl", 7, 1)), rate=rate)) as pair:
        stats = Stats()
        tokens = [t for new in pair.sequence(inputs("qwen2_5_vl"), SamplingParams.of(**options), stats) for t in new]
    return tokens, stats


@pytest.mark.parametrize("rate", [0.0, 0.7, 1.0])
def test_drafted_tokens_stand_at_the_rate(rate):
    draws = [accepts(rate, 0, place) for place in range(2000)]
    assert sum(draws) / len(draws) == pytest.approx(rate, abs=0.03)
    tokens, stats = answer(rate, method="sd", gamma=4, max_new_tokens=60)
    assert len(tokens) == 60 and stats.finish == "length"
    assert stats.acceptance_rate == pytest.approx(rate, abs=0.2)
    assert (stats.accepted == 0) == (rate == 0) and (stats.rejections == 0) == (rate == 1)


def test_every_method_meets_the_same_draws():
    rejected = [place for place in range(1, 40) if not accepts(0.7, 0, place)]
    for decoder in ("serial", "parallel"):
        _, stats = answer(0.7, decoder=decoder, gamma=1, max_new_tokens=40)
        assert 0 < stats.rejections <= len(rejected)
    _, alone = answer(0.7, method="ar", max_new_tokens=40)
    assert alone.target_forwards == 39
