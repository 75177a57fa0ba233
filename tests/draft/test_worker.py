"""The draft's side: proposals, rollback and cancelling, served in a thread."""

import threading
from multiprocessing import Pipe

import pytest
import torch

from hippo.draft.eyes import seen
from hippo.draft.messages import Begin, End, Keep, Propose, Read, Ready, Settle, Token, packed, put, take
from hippo.draft.worker import Worker
from hippo.families import VideoGrid, family_of
from tests.models import generated, inputs, model


@pytest.fixture
def pipe():
    ours, theirs = Pipe()

    def serve():
        with pytest.raises(EOFError):
            Worker(theirs, model("qwen2_5_vl")).serve()

    thread = threading.Thread(target=serve)
    thread.start()
    yield ours
    ours.close()
    thread.join(10)
    assert not thread.is_alive()


def begin(pipe, request):
    put(pipe, Begin(packed(request), 160))
    put(pipe, Keep(list(range(24)), (VideoGrid(4, 2, 3),)))
    ready = take(pipe)
    assert isinstance(ready, Ready) and ready.seconds > 0
    return ready.epoch


def proposals(pipe, count):
    put(pipe, Propose(count))
    return [take(pipe) for _ in range(count)]


def test_it_proposes_what_the_model_says_and_goes_on_after_a_rejection(pipe):
    request = inputs("qwen2_5_vl")
    expected = generated(model("qwen2_5_vl"), request)
    epoch = begin(pipe, request)
    put(pipe, Settle(0, expected[:1]))
    first = proposals(pipe, 4)
    assert [t.id for t in first] == expected[1:5]
    assert all(t.epoch == epoch + 1 and t.seconds > 0 and 0 < t.sure <= 1 for t in first)
    put(pipe, Settle(3, [expected[3]]))  # two of the four stand, then the token it had proposed itself
    again = proposals(pipe, 3)
    assert [t.id for t in again] == expected[4:7] and again[0].epoch == epoch + 2


@pytest.mark.parametrize(
    ("kept", "grids"), [(24, (VideoGrid(4, 2, 3),)), (2, (VideoGrid(2, 1, 1),)), (1, (VideoGrid(1, 1, 1),) * 2)]
)
def test_what_is_kept_is_carried_to_its_own_grid_and_all_of_it_if_the_videos_differ(pipe, kept, grids):
    request = inputs("qwen2_5_vl")
    expected = generated(model("qwen2_5_vl"), request)
    put(pipe, Begin(packed(request), 160))
    put(pipe, Keep(list(range(kept)), grids))
    assert bool(take(pipe).warning) == (len(grids) == 2)
    put(pipe, Settle(0, expected[:1]))
    assert [t.id for t in proposals(pipe, 4)] == expected[1:5]


def test_a_verdict_cancels_what_is_still_wanted(pipe):
    request = inputs("qwen2_5_vl")
    epoch = begin(pipe, request)
    put(pipe, Settle(0, [5]))
    put(pipe, Propose(500))
    assert isinstance(take(pipe), Token)
    put(pipe, Settle(1, [6]))
    put(pipe, Propose(1))
    seen = 1
    while take(pipe).epoch == epoch + 1:
        seen += 1
    assert seen < 500


def test_told_what_the_target_saw_it_proposes_the_same(pipe):
    request, target = inputs("qwen2_5_vl"), model("qwen2_5_vl")
    family = family_of(target)
    prompt, embeds = family.place(target, request), family.embed(target, request)
    told = seen(prompt, embeds, torch.arange(24), target.get_input_embeddings())
    assert told["at"].tolist() == prompt.video_at.tolist()
    put(pipe, Read(packed(told), 160))
    ready = take(pipe)
    expected = generated(target, request)
    put(pipe, Settle(0, expected[:1]))
    assert [t.id for t in proposals(pipe, 4)] == expected[1:5] and ready.epoch == 1


def test_requests_follow_one_another(pipe):
    for seed in (0, 1):
        request = inputs("qwen2_5_vl", seed=seed)
        expected = generated(model("qwen2_5_vl"), request)
        begin(pipe, request)
        put(pipe, Settle(0, expected[:1]))
        assert [t.id for t in proposals(pipe, 3)] == expected[1:4]
        put(pipe, End())
