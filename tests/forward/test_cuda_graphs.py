"""Recorded forwards against those run operation by operation. What a GPU records is stood in for by a trace of the
operations, which like a recording knows nothing but the tensors it was made with."""

import copy
import gc
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from hippo import state
from hippo.cli.doctor import _graphs
from hippo.families import Embeds, family_of
from hippo.forward import CachedModel, Repetition, cached_model, cuda_graphs, fused, why_not_fused, why_not_recorded
from hippo.forward.quantize import quantize
from tests.models import FAMILIES, model

FUSABLE = [family for family in FAMILIES if family != "qwen3_vl_moe"]


def text_of(family):
    return family_of(model(family)).language_model(model(family))


@pytest.fixture
def recording(monkeypatch):
    """Forwards are recorded on a CPU too, once `monkeypatch` has set `cuda_graphs.record`."""

    def forget():
        for family in FUSABLE:
            decoder = fused(text_of(family))
            decoder.idle.clear()
            decoder.unrecorded, decoder.prepared = "", False

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
        made.append(make_fx(lambda: work())())
        return made[-1], None

    recording.setattr(cuda_graphs, "record", traced)
    yield made
    assert not any(fused(text_of(family)).unrecorded for family in FUSABLE), "else operations ran one by one"


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """What is kept on disk is kept there."""
    monkeypatch.setenv("HIPPO_STATE", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


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
        assert ours.length == theirs.length and len(traces) == len(cuda_graphs.WIDTHS)
        del ours
        gc.collect()


def test_a_draft_runs_several_steps_at_once(traces):
    one, other = reader("qwen2_5_vl", drafts=True), reader("qwen2_5_vl", False)
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
    one, other = reader("qwen2_5_vl", drafts=True), reader("qwen2_5_vl", False)
    drafted = {}
    for limit, penalty in ((160, 3.0), (160, 1.5), (100, 3.0)):
        start = Repetition(torch.zeros(160, dtype=torch.bool), torch.tensor(penalty)).followed_by(torch.tensor([5]))
        ids, seen = [5], start
        drafted[limit, penalty] = one.draft(ids, cuda_graphs.RUN, limit, start)
        for expected, chance in drafted[limit, penalty]:
            ((token, sure),) = other.draft(ids, 1, limit, seen)
            assert token == expected and abs(sure - chance) < 1e-4
            ids, seen = [token], seen.followed_by(torch.tensor([token]))
        for each in (one, other):
            each.rollback(cuda_graphs.RUN)
    assert one.draft([5], cuda_graphs.RUN, 160) != drafted[160, 3.0] != drafted[160, 1.5]
    assert len(traces) == len(cuda_graphs.DRAFTING), "neither limit nor penalty is a part of what is recorded"


def test_the_limit_is_kept(traces):
    one = reader("qwen2_5_vl", drafts=True)
    free = one.draft([5], 4, limit=160)
    one.rollback(cuda_graphs.RUN)
    least = min(token for token, _ in free)
    assert least > 0 and all(token < least for token, _ in one.draft([5], 4, limit=least))


def test_an_answer_longer_than_the_room_makes_it_larger(traces, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_LEAST", 32)
    ours, theirs = reader("qwen2_5_vl", spare=1), reader("qwen2_5_vl", False)
    size = ours.size
    for step in range(100):
        torch.testing.assert_close(ours.extend([step]), theirs.extend([step]), rtol=1e-3, atol=1e-3)
    assert ours.size > size
    for ids in ([5] * 40, [6, 7]):  # more than a recorded forward takes, into a room that is full
        torch.testing.assert_close(ours.extend(ids), theirs.extend(ids), rtol=1e-3, atol=1e-3)


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
    assert recorder.count == 2 * len(cuda_graphs.WIDTHS)


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
        together.wait(60)
        one = reader(family)
        for width in (1, 2, 4, 8):
            one.extend([width] * width)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(answer, ("qwen2_5_vl", "llava_onevision")))
    assert recorder.count == 2 * len(cuda_graphs.WIDTHS)


@pytest.mark.parametrize("fails", [1, 2])
def test_a_recording_that_fails_leaves_the_answer_as_it_is_and_is_not_tried_again(recording, fails):
    recorder = Recorder({fails})
    recording.setattr(cuda_graphs, "record", recorder)
    assert why_not_recorded(text_of("qwen2_5_vl")) == ""
    ours, theirs = reader("qwen2_5_vl"), reader("qwen2_5_vl", False)
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


def test_a_draft_whose_recording_fails_proposes_the_same(recording):
    recording.setattr(cuda_graphs, "record", Recorder({2}))
    one, other = reader("qwen2_5_vl", drafts=True), reader("qwen2_5_vl", False)
    drafted = one.draft([5, 6, 7], 9, limit=100)
    assert len(drafted) == cuda_graphs.RUN
    ids = [5, 6, 7]
    for expected, _ in drafted:
        ((token, _),) = other.draft(ids, 9, limit=100)
        assert token == expected
        ids = [token]


def test_a_forward_that_synchronises_is_found_out(recording):
    recording.setattr(cuda_graphs, "record", Recorder())
    recording.setattr(cuda_graphs.Recorded, "_extending", lambda self, width: (self._length + self._length.item(),))
    reader("qwen2_5_vl")
    assert "not permitted" in why_not_recorded(text_of("qwen2_5_vl"))


def penalised(vocabulary=160):
    return Repetition(torch.zeros(vocabulary, dtype=torch.bool), torch.tensor(1.3)).followed_by(torch.tensor([5]))


def test_nothing_is_recorded_in_mid_answer(recording):
    recorder = Recorder()
    recording.setattr(cuda_graphs, "record", recorder)
    target, draft = reader("qwen2_5_vl"), reader("llava_onevision", drafts=True)
    before = recorder.count
    for count in range(1, 26):
        target.extend([7] * count)
        target.rollback(count)
        draft.extend([7] * count)
    for limit, repetition in ((100, None), (160, None), (160, penalised()), (100, penalised())):
        draft.draft([5, 6], cuda_graphs.RUN, limit, repetition)
        draft.draft([5], cuda_graphs.RUN - 1, limit, repetition)
    assert before == recorder.count == len(cuda_graphs.WIDTHS) + len(cuda_graphs.DRAFTING)


def ready(family="qwen2_5_vl", **options):
    CachedModel.of(family_of(model(family)), model(family), **options).prepare()
    return fused(text_of(family))


def test_a_loaded_model_has_recorded_what_requests_will_use(recording, kept):
    recorder = Recorder()
    recording.setattr(cuda_graphs, "record", recorder)
    assert [one.capacity for one in ready(fixed_width=8).idle] == [2048] and recorder.count == 1
    ready("llava_onevision", drafts=True)
    assert recorder.count == 1 + len(cuda_graphs.DRAFTING)
    ready(fixed_width=8)
    for _ in range(2):
        reader("qwen2_5_vl", fixed_width=8).extend([3, 4])
        reader("llava_onevision", drafts=True).draft([3], cuda_graphs.RUN, limit=100)
    assert recorder.count == 1 + len(cuda_graphs.DRAFTING)


def test_a_size_that_was_needed_is_recorded_at_load_the_next_time(recording, kept):
    recorder = Recorder()
    recording.setattr(cuda_graphs, "record", recorder)
    recording.setattr(cuda_graphs, "_LEAST", 64)
    sizes = []
    for length in (300, 900, 20, 500, 900, 1200):
        one = reader("qwen2_5_vl", length=length, fixed_width=8, spare=8)
        sizes.append(one._recorded.capacity)
        del one
    decoder = fused(text_of("qwen2_5_vl"))
    decoder.idle.clear()
    count = recorder.count
    assert sorted(one.capacity for one in ready(fixed_width=8).idle) == [64, *sorted({sizes[1], sizes[3], sizes[5]})]
    assert recorder.count == count + 4
    reader("qwen2_5_vl", length=900, fixed_width=8, spare=8)
    assert recorder.count == count + 4


def test_rooms_recorded_at_load_take_a_small_share_of_the_memory(recording, kept):
    recording.setattr(cuda_graphs, "record", Recorder())
    for length in (5000, 3000):
        reader("qwen2_5_vl", length=length, fixed_width=8)
    decoder = fused(text_of("qwen2_5_vl"))
    room = min(decoder.idle, key=lambda one: one.capacity).room
    free = int(10 * room.size / room.tensor.shape[-2] * 6000)
    decoder.idle.clear()
    recording.setattr(cuda_graphs, "free_memory", lambda device: free)
    assert [one.capacity for one in ready(fixed_width=8).idle] == [2048, cuda_graphs.room_size(3288)]


@pytest.mark.parametrize("found", [None, 3, "x", [2048.5], ["2048"], [0], [-4], [3001]])
def test_sizes_on_disk_that_are_none_are_ignored(recording, kept, found):
    recording.setattr(cuda_graphs, "record", Recorder())
    state.write(cuda_graphs._SIZES, cuda_graphs._layout(fused(text_of("qwen2_5_vl"))), found)
    assert [one.capacity for one in ready(fixed_width=8).idle] == [2048]


def test_recording_at_load_can_be_left_out(recording):
    recorder = Recorder()
    recording.setattr(cuda_graphs, "record", recorder)
    recording.setattr(cuda_graphs, "_WHEN", "late")
    assert not ready(fixed_width=8).idle and recorder.count == 0
    reader("qwen2_5_vl", fixed_width=8)
    assert recorder.count == 1


def test_recording_can_be_turned_off(monkeypatch):
    cuda = torch.device("cuda")
    assert cuda_graphs.records(cuda)
    monkeypatch.setattr(cuda_graphs, "_WHEN", "0")
    assert not cuda_graphs.records(cuda) and cuda_graphs.why_no_graphs(cuda) == "HIPPO_GRAPHS is 0"


def test_a_failure_at_load_is_known_before_the_first_request(recording, kept):
    recorder = Recorder({1})
    recording.setattr(cuda_graphs, "record", recorder)
    decoder = ready()
    assert "operation failed due to" in decoder.unrecorded and recorder.count == 1
    assert "operation failed due to" in cuda_graphs.last_failure()
    one = CachedModel.of(family_of(model("qwen2_5_vl")), model("qwen2_5_vl"))
    one.prefill(*prompt_of("qwen2_5_vl"))
    one.extend([3])
    assert one._recorded is None and recorder.count == 1


@pytest.mark.parametrize("width", [2, 5, 8, 25])
def test_a_fixed_width_records_one_forward_that_computes_what_transformers_does(traces, width):
    ours, theirs = reader("qwen2_5_vl", fixed_width=width), reader("qwen2_5_vl", False)
    assert len(traces) == 1
    for count in (1, 2, min(3, width), width, 1):
        ids = list(range(7, 7 + count))
        torch.testing.assert_close(ours.extend(ids), theirs.extend(ids), rtol=1e-3, atol=1e-3)
        for one in (ours, theirs):
            one.rollback(count - 1)
    assert len(traces) == 1 and ours.length == theirs.length


def test_at_a_fixed_width_the_room_is_the_same_whatever_requests_were_before(traces):
    reader("qwen2_5_vl", length=3000)
    assert reader("qwen2_5_vl", length=2100)._recorded.capacity == cuda_graphs.room_size(3288)
    assert reader("qwen2_5_vl", length=2100, fixed_width=8)._recorded.capacity == cuda_graphs.room_size(2388)


def test_a_fixed_width_leaves_room_for_the_last_window(recording):
    recorder = Recorder()
    recording.setattr(cuda_graphs, "record", recorder)
    recording.setattr(cuda_graphs, "room_size", lambda tokens: tokens)
    one = reader("qwen2_5_vl", fixed_width=8, spare=50)
    tensor = one._recorded.room.tensor
    for _ in range(49):
        one.extend([3])
    one.extend([3] * 8)
    assert one._recorded.room.tensor is tensor and recorder.count == 1


def test_a_fixed_width_needs_no_mask_of_transformers_attention(recording, monkeypatch):
    recording.setattr(cuda_graphs, "record", Recorder())
    one = reader("qwen2_5_vl", fixed_width=8)
    own = reader("qwen2_5_vl", False)
    monkeypatch.setattr(cached_model.CachedModel, "_attention", "flash_attention_2")
    torch.testing.assert_close(one.extend([4]), own.extend([4]), rtol=1e-3, atol=1e-3)
    again = CachedModel.of(family_of(model("qwen2_5_vl")), model("qwen2_5_vl"), fixed_width=8)
    again.prefill(*prompt_of("qwen2_5_vl"))


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_forwards_are_recorded(recording, monkeypatch, bits):
    monkeypatch.setattr(sys.modules["hippo.forward.fused"], "_serves_packed", lambda device: True)
    recorder = Recorder()
    recording.setattr(cuda_graphs, "record", recorder)
    net = copy.deepcopy(model("qwen2_5_vl"))
    quantize(net, bits)
    one = CachedModel.of(family_of(net), net, drafts=True)
    one.prepare()
    one.prefill_few(*prompt_of("qwen2_5_vl"))
    assert len(one.draft([5, 6], cuda_graphs.RUN, 160)) == cuda_graphs.RUN
    assert recorder.count == len(cuda_graphs.DRAFTING) and not why_not_recorded(family_of(net).language_model(net))


def test_why_a_model_is_not_recorded():
    assert why_not_recorded(text_of("qwen2_5_vl")) == "a cpu has no CUDA graphs"


def test_a_failure_is_remembered_for_doctor(recording, kept):
    assert cuda_graphs.last_failure() == ""
    recording.setattr(cuda_graphs, "record", Recorder({2}))
    reader("qwen2_5_vl", fixed_width=1)
    assert cuda_graphs.last_failure() == ""
    reader("qwen2_5_vl", fixed_width=2)
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
