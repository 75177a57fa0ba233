"""The text in half precision does not depend on what was drafted, by which method, and when it came."""

import copy
import random
import sys
import time
from contextlib import closing

import pytest
import torch

from hippo.draft import Drafter
from hippo.errors import BadRequest
from hippo.forward import cached_model, cuda_graphs
from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from hippo.sequence import Sequence
from hippo.stats import Stats
from tests.drafts import draft
from tests.forward.test_cuda_graphs import Recorder
from tests.models import FAMILIES, generated, inputs, model

REQUESTS, TOKENS = 32, 11
WAYS = [
    {"decoder": "serial", "gamma": 3},
    {"decoder": "parallel", "gamma": 4},
    {"decoder": "parallel", "pruner": "hippo"},
    {"decoder": "auto", "pruner": "hippo"},
]


def half(net, dtype=torch.bfloat16):
    return copy.deepcopy(net).to(dtype)


def unsure(net):
    """A draft that is right at times."""
    weight, dice = net.get_output_embeddings().weight, torch.Generator().manual_seed(0)
    noise = torch.randn(weight.shape, generator=dice) * weight.float().std() * 0.15
    weight.data += noise.to(weight)
    return net


def answer(pair, request, width, tokens=24, **options):
    stats = Stats()
    params = SamplingParams(max_new_tokens=tokens, verify_width=width, **options)
    return [token for tokens in Sequence(pair, request, params, stats) for token in tokens], stats


@pytest.fixture
def uneven_drafts(monkeypatch):
    """Drafts that come late, at random."""
    dice, take = random.Random(0), Drafter.take

    def late(self, count):
        time.sleep(dice.choice((0.0, 0.0, 0.001, 0.004)))
        return take(self, count)

    monkeypatch.setattr(Drafter, "take", late)


@pytest.mark.usefixtures("patient_targets", "uneven_drafts")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_gives_the_bits_of_ar_in_bfloat16(family):
    """Each request is answered by `ar` and by one of the ways, with a draft that is sometimes right. Every other one
    has the width that "auto" means here: none, where a model is batch-invariant."""
    target, checked, accepted = half(model(family)), 0, 0
    with closing(Pair(target, Draft(unsure(half(model(family))), place="thread"))) as pair:
        for seed in range(REQUESTS):
            request, way = inputs(family, seed=seed, frames=4), WAYS[seed % len(WAYS)]
            width = "auto" if seed % 8 >= len(WAYS) and family != "qwen3_vl_moe" else 8
            expected, _ = answer(pair, request, width, TOKENS, method="ar")
            tokens, stats = answer(pair, request, width, TOKENS, keep_ratio=0.3, **way)
            assert tokens == expected, (seed, way)
            checked, accepted = checked + stats.checked, accepted + stats.accepted
    assert checked > 4 * REQUESTS and 0.1 < accepted / checked < 0.95


@pytest.mark.usefixtures("patient_targets")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_so_in_other_dtypes_and_widths(dtype):
    target, request = half(model("qwen2_5_vl"), dtype), inputs("qwen2_5_vl", seed=3)
    with closing(Pair(target, Draft(half(draft("other"), dtype), place="inline"))) as pair:
        for width in (2, 8):
            expected, alone = answer(pair, request, width, method="ar")
            tokens, stats = answer(pair, request, width, decoder="serial", gamma=6)
            assert tokens == expected and stats.checked > 0 and alone.checked == 0
            if dtype == torch.float32:
                assert expected == generated(target, request)


@pytest.mark.usefixtures("patient_targets", "uneven_drafts")
@pytest.mark.parametrize("fails", [0, 1])
def test_so_with_recorded_forwards_and_where_recording_fails(monkeypatch, fails):
    monkeypatch.setattr(sys.modules["hippo.forward.fused"], "_served", lambda device, dtype: True)
    for module in (cached_model, cuda_graphs):
        monkeypatch.setattr(module, "records", lambda device: True)
    recorder = Recorder({fails})
    monkeypatch.setattr(cuda_graphs, "record", recorder)
    target, checked = half(model("qwen2_5_vl")), 0
    with closing(Pair(target, Draft(unsure(half(model("qwen2_5_vl"))), place="thread"))) as pair:
        for seed in range(8):
            request, way = inputs("qwen2_5_vl", seed=seed, frames=4), WAYS[seed % len(WAYS)]
            expected, _ = answer(pair, request, 8, method="ar")
            tokens, stats = answer(pair, request, 8, keep_ratio=0.3, **way)
            assert tokens == expected, (seed, way)
            checked += stats.checked
    assert checked > 40 and recorder.count > 0


def test_a_width_that_makes_no_sense_is_refused():
    for width in (-1, 26, "wide", True):
        with pytest.raises(BadRequest, match="verify_width"):
            SamplingParams(verify_width=width)
