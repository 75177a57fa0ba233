"""The draft's side: proposals, rollback, cancelling and several requests, over both transports."""

import threading

import pytest
import torch

from hippo.draft.messages import Begin, Commit, End, Failed, Loaded, Loading, Prefill, Propose, ReadPrompt, Ready, Token
from hippo.draft.shared_vision import kept_prompt
from hippo.draft.worker import Worker, work
from hippo.families import VideoGrid, family_of
from tests.draft.test_transport import connected
from tests.models import generated, inputs, model


@pytest.fixture(params=["process", "thread"])
def pipe(request):
    ours, theirs = connected(request.param)

    def serve():
        with pytest.raises(ConnectionError):
            Worker(theirs, model("qwen2_5_vl")).serve()

    thread = threading.Thread(target=serve)
    thread.start()
    yield ours
    ours.close()
    thread.join(60)
    assert not thread.is_alive()


def begin(pipe, request, id=1):
    pipe.send(Begin(id, request, 160))
    pipe.send(Prefill(id, torch.arange(24), (VideoGrid(4, 2, 3),)))
    while isinstance(ready := pipe.receive(20), Loading | Loaded):
        pass
    assert isinstance(ready, Ready) and ready.seconds > 0 and ready.request == id


def proposals(pipe, count, id=1):
    pipe.send(Propose(id, count))
    return [pipe.receive(20) for _ in range(count)]


def test_it_proposes_what_the_model_says_and_goes_on_after_a_rejection(pipe):
    request = inputs("qwen2_5_vl")
    expected = generated(model("qwen2_5_vl"), request)
    begin(pipe, request)
    pipe.send(Commit(1, 0, expected[:1]))
    first = proposals(pipe, 4)
    assert [t.id for t in first] == expected[1:5]
    assert all(t.epoch == 1 and t.seconds > 0 and 0 < t.prob <= 1 for t in first)
    pipe.send(Commit(1, 3, [expected[3]]))  # two of the four stand, then the token it had proposed itself
    again = proposals(pipe, 3)
    assert [t.id for t in again] == expected[4:7] and again[0].epoch == 2


@pytest.mark.parametrize(
    ("kept", "grids"), [(24, (VideoGrid(4, 2, 3),)), (2, (VideoGrid(2, 1, 1),)), (1, (VideoGrid(1, 1, 1),) * 2)]
)
def test_what_is_kept_is_remapped_to_its_own_grid_and_all_of_it_if_the_videos_differ(pipe, kept, grids):
    request = inputs("qwen2_5_vl")
    expected = generated(model("qwen2_5_vl"), request)
    pipe.send(Begin(1, request, 160))
    pipe.send(Prefill(1, torch.arange(kept), grids))
    assert bool(pipe.receive(20).warning) == (len(grids) == 2)
    pipe.send(Commit(1, 0, expected[:1]))
    assert [t.id for t in proposals(pipe, 4)] == expected[1:5]


def test_a_verdict_cancels_what_is_still_wanted(pipe):
    begin(pipe, inputs("qwen2_5_vl"))
    pipe.send(Commit(1, 0, [5]))
    pipe.send(Propose(1, 500))
    assert isinstance(pipe.receive(20), Token)
    pipe.send(Commit(1, 1, [6]))
    pipe.send(Propose(1, 1))
    drafted = 1
    while pipe.receive(20).epoch == 1:
        drafted += 1
    assert drafted < 500


def test_with_the_targets_embeddings_it_proposes_the_same(pipe):
    request, target = inputs("qwen2_5_vl"), model("qwen2_5_vl")
    family = family_of(target)
    prompt, embeds = family.prepare_prompt(target.config, request), family.embed(target, request)
    record = kept_prompt(prompt, embeds, torch.arange(24), target.get_input_embeddings())
    assert record["at"].tolist() == prompt.video_at.tolist()
    pipe.send(ReadPrompt(1, {key: value.detach() for key, value in record.items()}, 160))
    assert isinstance(pipe.receive(20), Ready)
    expected = generated(target, request)
    pipe.send(Commit(1, 0, expected[:1]))
    assert [t.id for t in proposals(pipe, 4)] == expected[1:5]


def test_requests_follow_one_another(pipe):
    for seed in (0, 1):
        request = inputs("qwen2_5_vl", seed=seed)
        expected = generated(model("qwen2_5_vl"), request)
        begin(pipe, request)
        pipe.send(Commit(1, 0, expected[:1]))
        assert [t.id for t in proposals(pipe, 3)] == expected[1:4]
        pipe.send(End(1))


def test_two_requests_at_a_time_are_served_in_turn_and_get_the_tokens_they_get_alone(pipe):
    expected = {}
    for id in (1, 2):
        request = inputs("qwen2_5_vl", seed=id)
        expected[id] = generated(model("qwen2_5_vl"), request)
        begin(pipe, request, id)
    for id in (1, 2):
        pipe.send(Commit(id, 0, expected[id][:1]))
        pipe.send(Propose(id, 6))
    drafted = [pipe.receive(20) for _ in range(12)]
    for id in (1, 2):
        assert [t.id for t in drafted if t.request == id] == expected[id][1:7]
        pipe.send(Commit(id, 3, [expected[id][3]]))  # one's rollback is not the other's
    assert {t.request for t in drafted[-6:]} == {1, 2}, "neither waits for all of the other's"
    pipe.send(End(1))
    assert [t.id for t in proposals(pipe, 3, 2)] == expected[2][4:7]


def test_each_of_two_requests_has_a_penalty_of_its_own(pipe):
    expected, penalties = {}, {1: 1.0, 2: 1.7}
    request = inputs("qwen2_5_vl", seed=1)
    for id, penalty in penalties.items():
        expected[id] = generated(model("qwen2_5_vl"), request, repetition_penalty=penalty)
        pipe.send(Begin(id, request, 160, penalty))
        pipe.send(Prefill(id, torch.arange(24), (VideoGrid(4, 2, 3),)))
        assert isinstance(pipe.receive(20), Ready)
    for id in penalties:
        pipe.send(Commit(id, 0, expected[id][:1]))
        pipe.send(Propose(id, 8))
    drafted = [pipe.receive(20) for _ in range(16)]
    for id in penalties:
        assert [t.id for t in drafted if t.request == id] == expected[id][1:9]
        pipe.send(Commit(id, 2, [expected[id][2]]))  # what was drafted after it is no part of the text
    assert [t.id for t in proposals(pipe, 6, 2)] == expected[2][3:9] != expected[1][3:9]


def test_inputs_that_cannot_be_used_lose_only_their_request(pipe):
    request = inputs("qwen2_5_vl")
    expected = generated(model("qwen2_5_vl"), request)
    begin(pipe, request)
    pipe.send(Commit(1, 0, expected[:1]))
    pipe.send(Begin(2, request | {"pixel_values_videos": torch.zeros(3, 3)}, 160))
    failed = pipe.receive(20)
    assert isinstance(failed, Failed) and failed.request == 2
    assert "cannot use the inputs" in failed.reason and "as draft_inputs" in failed.reason
    for record in (Prefill(2, torch.arange(1), ()), Commit(2, 0, [1]), Propose(2, 4), End(2)):
        pipe.send(record)  # on their way before the failure was known
    assert [t.id for t in proposals(pipe, 4)] == expected[1:5]


def test_a_prompt_that_cannot_be_read_loses_only_its_request(pipe):
    names = ("ids", "at", "rows", "positions", "next_position")
    pipe.send(ReadPrompt(1, dict.fromkeys(names, torch.tensor([0])), 160))
    failed = pipe.receive(20)
    assert isinstance(failed, Failed) and failed.request == 1
    begin(pipe, inputs("qwen2_5_vl"), 2)


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_it_works_on_the_device_it_is_given_and_leaves_that_of_others(device, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda which: chosen.append((which, threading.current_thread())))
    ours, theirs = connected("thread")
    thread = threading.Thread(target=work, args=(theirs, model("qwen2_5_vl"), "float32", device, 0, False, 16))
    thread.start()
    begin(ours, inputs("qwen2_5_vl"))
    ours.close()
    thread.join(60)
    assert chosen == ([("cuda:1", thread)] if device == "cuda:1" else [])


def test_a_device_that_cannot_be_set_loses_the_draft_with_its_reason(monkeypatch):
    def refuse(which):
        raise RuntimeError("invalid device ordinal")

    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    ours, theirs = connected("thread")
    assert work(theirs, model("qwen2_5_vl"), "float32", "cuda:1", 0, False, 16) == 1
    assert ours.receive(5) == Failed(0, "RuntimeError: invalid device ordinal")
