"""Recorded forwards against those run operation by operation. What a GPU records is stood in for by a trace of the
operations, which like a recording knows nothing but the tensors it was made with."""

import gc

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from hippo.families import Embeds, family_of
from hippo.forward import CachedModel, cached_model, cuda_graphs, fused
from tests.models import FAMILIES, model

FUSABLE = [family for family in FAMILIES if family != "qwen3_vl_moe"]


@pytest.fixture
def traces(monkeypatch):
    """Forwards are recorded on a CPU too; counts them."""
    made = []

    def traced(work, device):
        made.append(make_fx(work)())
        return made[-1]

    def forget():
        for family in FUSABLE:
            fused(family_of(model(family)).language_model(model(family))).idle.clear()

    monkeypatch.setattr(cached_model, "records", lambda device: True)
    monkeypatch.setattr(cuda_graphs, "recorded", traced)
    forget()
    yield made
    forget()


def prompt_of(family, length=20):
    axes = 3 if family.startswith("qwen") else 1
    torch.manual_seed(length)
    positions = torch.randint(0, 30, (axes, length)).sort(dim=1).values
    return Embeds(torch.randn(length, 64)), positions, positions[:, -1] + 1


def reader(family, recorded=True, length=20, **options):
    one = CachedModel.of(family_of(model(family)), model(family), may_fuse=recorded, **options)
    one.prefill(*prompt_of(family, length))
    assert (one._recorded is not None) == recorded
    return one


@pytest.mark.parametrize("family", FUSABLE)
def test_they_compute_what_transformers_does(family, traces):
    for length in (20, 33):  # a second request, by what was recorded for the first
        ours, theirs = reader(family, length=length), reader(family, False, length)
        for ids, back in (([7], 0), ([3, 1, 4, 1, 5], 3), ([9, 2], 1), ([6] * 30, 29), ([6] * 40, 20), ([8], 0)):
            torch.testing.assert_close(ours.extend(ids), theirs.extend(ids), rtol=1e-3, atol=1e-3)
            for one in (ours, theirs):
                one.rollback(back)
        assert ours.length == theirs.length and len(traces) == 4, "of widths 1, 2, 8 and 32"
        del ours
        gc.collect()


def test_a_draft_runs_several_steps_at_once(traces):
    one, other = reader("qwen2_5_vl"), reader("qwen2_5_vl", False)
    drafted = one.draft([5, 6, 7], 9, limit=100)
    assert len(drafted) == cuda_graphs.RUN and one.length == 20 + 3 + cuda_graphs.RUN - 1
    ids = [5, 6, 7]
    for expected, chance in drafted:
        ((token, sure),) = other.draft(ids, 9, limit=100)
        assert token == expected and abs(sure - chance) < 1e-4
        ids = [token]
    assert one.length == other.length
    assert len(one.draft([drafted[-1][0]], 2, limit=100)) == 1, "fewer are wanted than a run has"


def test_the_limit_is_kept(traces):
    one = reader("qwen2_5_vl")
    free = one.draft([5], 4, limit=160)
    one.rollback(cuda_graphs.RUN)
    least = min(token for token, _ in free)
    assert least > 0 and all(token < least for token, _ in one.draft([5], 4, limit=least))


def test_an_answer_longer_than_the_room_makes_it_larger(traces, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_STEP", 32)
    ours, theirs = reader("qwen2_5_vl", spare=1), reader("qwen2_5_vl", False)
    size = ours.size
    for step in range(60):
        torch.testing.assert_close(ours.extend([step]), theirs.extend([step]), rtol=1e-3, atol=1e-3)
    assert ours.size > size


def test_an_answer_longer_than_the_table_of_places_goes_on_unrecorded(traces, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_LONGEST", 40)
    ours, theirs = reader("qwen2_5_vl"), reader("qwen2_5_vl", False)
    for step in range(50):
        torch.testing.assert_close(ours.extend([step]), theirs.extend([step]), rtol=1e-3, atol=1e-3)


def test_two_requests_of_one_model_do_not_share_a_room(traces):
    one, other, alone = reader("qwen2_5_vl"), reader("qwen2_5_vl", length=33), reader("qwen2_5_vl", False)
    for step in range(5):
        other.extend([9, step])
        torch.testing.assert_close(one.extend([step]), alone.extend([step]), rtol=1e-3, atol=1e-3)


def test_a_room_waits_for_the_next_request_of_its_size_and_no_other(traces):
    one = reader("qwen2_5_vl")
    room, kept = one._recorded.room, one._recorded
    del one
    again = reader("qwen2_5_vl", length=30)
    assert again._recorded is kept and again._recorded.room is room
    del again
    assert reader("qwen2_5_vl", length=2000)._recorded is not kept
