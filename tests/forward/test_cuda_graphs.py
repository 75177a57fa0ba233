"""Recorded forwards against those run operation by operation. What a GPU records is stood in for by a trace of the
operations, which like a recording knows nothing but the tensors it was made with."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from hippo.cli.doctor import _graphs
from hippo.families import Embeds, family_of
from hippo.forward import CachedModel, Repetition, cached_model, cuda_graphs, fused, why_not_fused, why_not_recorded
from tests.models import FAMILIES, model

FUSABLE = [family for family in FAMILIES if family != "qwen3_vl_moe"]


def text_of(family):
    return family_of(model(family)).language_model(model(family))


@pytest.fixture
def recording(monkeypatch):
    """Forwards are recorded on a CPU too, once `monkeypatch` has set `cuda_graphs.record`."""

    def forget():
        for family in FUSABLE:
            fused(text_of(family)).idle.clear()
            fused(text_of(family)).unrecorded = ""

    for module in (cached_model, cuda_graphs):
        monkeypatch.setattr(module, "records", lambda device: True)
    forget()
    yield monkeypatch
    forget()


@pytest.fixture
def traces(recording):
    """Counts recorded forwards."""
    made = []

    def traced(work, device, place):
        made.append(make_fx(work)())
        return made[-1], None

    recording.setattr(cuda_graphs, "record", traced)
    return made


class NothingSynchronises(TorchDispatchMode):
    """Refuses what a GPU refuses while a graph is recorded: to wait for a value, and to bring one from the host."""

    WAITS = ("item", "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        return func(*args, **(kwargs or {}))


class Recorder:
    """Records as a GPU does: one forward at a time in a process, and nothing may synchronise meanwhile. fails: which
    recordings are broken off, by their number."""

    def __init__(self, fails=()):
        self.fails, self.count, self._busy = fails, 0, threading.Lock()

    def __call__(self, work, device, place=None):
        assert self._busy.acquire(blocking=False), "two recordings overlap"
        try:
            self.count += 1
            time.sleep(0.01)
            with NothingSynchronises():
                work()
            if self.count in self.fails:
                raise RuntimeError("operation failed due to a previous error during capture")
            return work, place
        finally:
            self._busy.release()


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


def test_a_penalty_counts_for_the_tokens_of_the_same_run(traces):
    one, other = reader("qwen2_5_vl"), reader("qwen2_5_vl", False)
    drafted = {}
    for limit, penalty in ((160, 3.0), (160, 1.5), (100, 3.0)):
        start = Repetition(torch.zeros(limit, dtype=torch.bool), torch.tensor(penalty)).followed_by(torch.tensor([5]))
        ids, seen = [5], start
        drafted[limit, penalty] = one.draft(ids, cuda_graphs.RUN, limit, start)
        for expected, chance in drafted[limit, penalty]:
            ((token, sure),) = other.draft(ids, 1, limit, seen)
            assert token == expected and abs(sure - chance) < 1e-4
            ids, seen = [token], seen.followed_by(torch.tensor([token]))
        for each in (one, other):
            each.rollback(cuda_graphs.RUN)
    assert one.draft([5], cuda_graphs.RUN, 160) != drafted[160, 3.0] != drafted[160, 1.5]
    assert len(traces) == 3, "without a penalty, and with one for each limit"


def test_the_limit_is_kept(traces):
    one = reader("qwen2_5_vl")
    free = one.draft([5], 4, limit=160)
    one.rollback(cuda_graphs.RUN)
    least = min(token for token, _ in free)
    assert least > 0 and all(token < least for token, _ in one.draft([5], 4, limit=least))


def test_an_answer_longer_than_the_room_makes_it_larger(traces, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_LEAST", 32)
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


def test_a_room_waits_for_the_next_request_that_it_is_not_too_large_for(traces):
    one = reader("qwen2_5_vl", length=2000)
    room, kept = one._recorded.room, one._recorded
    del one
    again = reader("qwen2_5_vl", length=2100)
    assert again._recorded is kept and again._recorded.room is room
    other = reader("qwen2_5_vl", length=2000)
    assert other._recorded is not kept, "it is in use"
    del again, other
    assert reader("qwen2_5_vl", length=20)._recorded is not kept


def test_prompts_of_five_lengths_record_no_more_than_two_rooms(recording):
    recorder = Recorder()
    recording.setattr(cuda_graphs, "record", recorder)
    for length in (1000, 2000, 1900, 1500, 2100, 1000):
        one = reader("qwen2_5_vl", length=length)
        for width in (1, 2, 4):
            one.extend([7] * width)
        del one
    assert recorder.count == 2 * 3


def test_sizes_are_few_and_waste_a_quarter_at_most():
    sizes = {tokens: cuda_graphs.room_size(tokens) for tokens in range(1, 40000)}
    assert all(tokens <= size <= max(2048, 1.25 * tokens + 1) for tokens, size in sizes.items())
    assert len(set(sizes.values())) < 20


@pytest.mark.parametrize("plenty", [True, False])
def test_rooms_of_no_request_are_freed_where_memory_is_short(traces, monkeypatch, plenty):
    long, short = reader("qwen2_5_vl", length=5000), reader("qwen2_5_vl")
    size = short.size
    del long, short
    monkeypatch.setattr(cuda_graphs, "free_memory", lambda device: (100 if plenty else 15) * size)
    decoder = fused(text_of("qwen2_5_vl"))
    assert len(decoder.idle) == 2
    reader("qwen2_5_vl", length=2500)
    gc.collect()
    assert len(decoder.idle) == (3 if plenty else 2)
    assert [one.room.size for one in decoder.idle][-2] == size, "the one used longest ago is gone"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_room_that_is_used_again_keeps_nothing_of_the_request_before(traces, value):
    one = reader("qwen2_5_vl", length=33)
    kept = one._recorded
    one.extend([7])
    with torch.inference_mode():
        kept.room.tensor[..., 30:, :] = value  # as an overflow of half precision leaves it
    del one
    again, alone = reader("qwen2_5_vl"), reader("qwen2_5_vl", False)
    assert again._recorded is kept
    torch.testing.assert_close(again.extend([5, 6]), alone.extend([5, 6]), rtol=1e-3, atol=1e-3)


def test_two_models_in_two_threads_record_one_after_the_other(recording):
    recorder = Recorder()
    recording.setattr(cuda_graphs, "record", recorder)
    together = threading.Barrier(2)

    def answer(family):
        one = reader(family)
        together.wait(60)
        for width in (1, 2, 4, 8):
            one.extend([width] * width)
        one.draft([3], cuda_graphs.RUN, limit=100)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(answer, ("qwen2_5_vl", "llava_onevision")))
    assert recorder.count == 10


@pytest.mark.parametrize("fails", [1, 2])
def test_a_recording_that_fails_leaves_the_answer_as_it_is_and_is_not_tried_again(recording, fails):
    recorder = Recorder({fails})
    recording.setattr(cuda_graphs, "record", recorder)
    ours, theirs = reader("qwen2_5_vl"), reader("qwen2_5_vl", False)
    assert why_not_recorded(text_of("qwen2_5_vl")) == ""
    for ids, back in (([7], 0), ([3, 1, 4, 1, 5], 3), ([9, 2], 0)):
        torch.testing.assert_close(ours.extend(ids), theirs.extend(ids), rtol=1e-3, atol=1e-3)
        for one in (ours, theirs):
            one.rollback(back)
    assert recorder.count == fails and ours.length == theirs.length
    assert "operation failed due to" in why_not_recorded(text_of("qwen2_5_vl"))
    again = CachedModel.of(family_of(model("qwen2_5_vl")), model("qwen2_5_vl"))
    again.prefill(*prompt_of("qwen2_5_vl"))
    again.extend([7])
    assert again._recorded is None and recorder.count == fails
    assert why_not_recorded(text_of("llava_onevision")) == "", "the other model is still recorded"


def test_a_draft_whose_recording_fails_proposes_step_by_step(recording):
    recording.setattr(cuda_graphs, "record", Recorder({2}))  # the first is of the tokens before the last
    one, other = reader("qwen2_5_vl"), reader("qwen2_5_vl", False)
    ((token, sure),) = one.draft([5, 6, 7], 9, limit=100)
    ((expected, chance),) = other.draft([5, 6, 7], 9, limit=100)
    assert token == expected and abs(sure - chance) < 1e-4 and one.length == other.length == 23


def test_a_forward_that_synchronises_is_found_out(recording):
    recording.setattr(cuda_graphs, "record", Recorder())
    one = reader("qwen2_5_vl")
    recording.setattr(cuda_graphs.Recorded, "_extending", lambda self, width: (self._length + self._length.item(),))
    one.extend([3])
    assert "not permitted" in why_not_recorded(text_of("qwen2_5_vl"))


def test_why_a_model_is_not_recorded():
    assert why_not_recorded(text_of("qwen2_5_vl")) == "a cpu has no CUDA graphs"


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """What is kept on disk is kept there."""
    monkeypatch.setenv("HIPPO_STATE", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_failure_is_remembered_for_doctor(recording, kept):
    assert cuda_graphs.last_failure() == ""
    recording.setattr(cuda_graphs, "record", Recorder({2}))
    one = reader("qwen2_5_vl")
    one.extend([3])
    assert cuda_graphs.last_failure() == ""
    one.extend([3, 4])
    assert "operation failed due to a previous error" in cuda_graphs.last_failure()
    assert _graphs("cpu").startswith("can be recorded; a model went on without them on 2")


def test_whether_anything_can_be_recorded_is_found_out_by_trying(recording, kept):
    cpu = torch.device("cpu")
    recording.setattr(cuda_graphs, "record", Recorder())
    assert cuda_graphs.why_no_graphs(cpu) == "" and _graphs("cpu") == "can be recorded"
    recording.setattr(cuda_graphs, "record", Recorder({1}))
    assert cuda_graphs.why_no_graphs(cpu).startswith("recording failed (RuntimeError: operation failed")
    recording.setattr(cuda_graphs, "record", lambda work, device: (lambda: (torch.zeros(1),), None))
    assert _graphs("cpu") == "not used, what was recorded gives another result"
    recording.undo()
    assert cuda_graphs.why_no_graphs(cpu) == "a cpu has no CUDA graphs"


def test_one_that_is_not_fused_is_not_recorded_either(recording):
    text = text_of("qwen3_vl_moe")
    assert why_not_recorded(text) == why_not_fused(text) != ""
