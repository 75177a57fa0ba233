"""What forwards cost, and how near decoding comes to a machine without overhead."""

from contextlib import closing

import pytest
import torch

from hippo.bench import efficiency as efficiency_module
from hippo.bench.efficiency import Answer, efficiency, reading, steps
from hippo.bench.traces import WIDTHS
from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from tests.drafts import draft
from tests.models import generated, inputs, model


@pytest.fixture(scope="module")
def pair():
    with closing(Pair(model("qwen2_5_vl"), Draft(draft("other")))) as of:
        yield of


@pytest.fixture(scope="module")
def costs(pair):
    return steps(pair, draft("other"), inputs("qwen2_5_vl"), count=4)


def test_steps_are_timed_alone_and_beside_a_draft_at_work(costs):
    for kind in ("target_alone", "target_undisturbed", "target_beside"):
        assert list(costs[kind]) == list(WIDTHS) and min(costs[kind].values()) > 0
    assert min(seconds for name, seconds in costs.items() if not name.startswith("target_")) > 0


def test_no_more_is_copied_than_shows_the_bandwidth(monkeypatch):
    sizes, times = [], iter(range(1000))
    zeros = torch.zeros

    def counted(size, **options):
        sizes.append(size)
        return zeros(size, **options)

    monkeypatch.setattr(efficiency_module, "_COPIED", 1000)
    monkeypatch.setattr(efficiency_module, "clock", lambda device: next(times))
    monkeypatch.setattr(torch, "zeros", counted)
    assert efficiency_module.reading_seconds(600, torch.device("cpu")) == 0.5  # a second reads and writes all of it
    assert efficiency_module.reading_seconds(15_000, torch.device("cpu")) == 7.5
    assert sizes == [600, 1000]


def test_a_pruned_prompt_is_read_where_it_is_pruned(pair):
    request = inputs("qwen2_5_vl", frames=40)
    few, _ = reading(pair, draft("other"), request, SamplingParams.of(method="hippo", keep_ratio=0.1))
    every, seconds = reading(pair, draft("other"), request, SamplingParams.of(method="pearl"))
    assert few.length < every.length == request["input_ids"].shape[1] and seconds > 0


def answered(pair, costs, decode, rate=None, **options):
    request, flat = inputs("qwen2_5_vl"), {name: dict.fromkeys(WIDTHS, 1.0) for name in costs if name[:7] == "target_"}
    ids = generated(model("qwen2_5_vl"), request)
    answer = Answer(SamplingParams.of(**options), decode, ids, 0.0, rate)
    return efficiency(answer, costs | flat | {"draft": 0.1, "draft_beside": 0.2}, pair, draft("other"), request)


def test_a_token_a_forward_takes_as_long_as_its_forwards(pair, costs):
    assert answered(pair, costs, 23.0, method="ar") == (1.0, 1.0)
    assert answered(pair, costs, 46.0, method="ar") == (0.5, 0.5)


def test_a_better_draft_makes_the_ideal_and_so_the_same_time_worse(pair, costs):
    (good, undisturbed), (bad, _) = (answered(pair, costs, 10.0, rate, method="hippo") for rate in (1.0, 0.0))
    assert undisturbed < good < bad, "an undisturbed draft would be there earlier, too"


def test_in_turns_nobody_disturbs(pair, costs):
    both = answered(pair, costs, 10.0, 0.8, method="sd")
    assert both[0] == both[1] > 0
