"""Both transports, against the same tests."""

import threading
import time
from multiprocessing.connection import Connection

import pytest
import torch

from hippo.draft.messages import Begin, Commit, End, Loading, Prefill, heartbeat
from hippo.draft.transport import ProcessTransport, ThreadTransport
from hippo.families import VideoGrid

INPUTS = {"pixel_values_videos": torch.randn(3, 4), "input_ids": torch.tensor([[1, 2]]), "note": "x"}


def connected(kind, timeout=20.0):
    if kind == "thread":
        return ThreadTransport.pair()
    ours, theirs = ProcessTransport.pair(timeout)
    return ours, ProcessTransport(Connection(theirs.detach()))


@pytest.fixture(params=["process", "thread"])
def ends(request):
    ours, theirs = connected(request.param)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_records_arrive_in_order_as_they_were_sent(ends):
    ours, theirs = ends
    grid = VideoGrid(2, 1, 2, torch.tensor([0, 3]))
    ours.send(Begin(1, INPUTS, 7))
    ours.send(Prefill(1, torch.tensor([0, 2]), (grid,)))
    ours.send(Commit(1, 3, [1, 2]))
    begin, prefill, commit = (theirs.receive(1.0) for _ in range(3))
    assert commit == Commit(1, 3, [1, 2]) and (begin.request, begin.limit, begin.inputs["note"]) == (1, 7, "x")
    assert all(torch.equal(begin.inputs[key], INPUTS[key]) for key in ("pixel_values_videos", "input_ids"))
    assert prefill.kept.tolist() == [0, 2] and prefill.grids[0].cells.tolist() == [0, 3]
    theirs.send(End(1))
    assert ours.receive(None) == End(1)


def test_a_receive_waits_no_longer_than_it_may(ends):
    began = time.monotonic()
    assert ends[0].receive(0) is None and time.monotonic() - began < 10
    assert ends[0].receive(0.2) is None and 0.2 <= time.monotonic() - began < 10


def test_what_was_sent_before_the_end_arrives_and_then_the_end_is_told(ends):
    ours, theirs = ends
    theirs.send(End(1))
    theirs.close()
    theirs.close()
    assert ours.receive(1.0) == End(1)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            ours.receive(1.0)
    with pytest.raises(ConnectionError):
        ours.send(End(1))
    with pytest.raises(ConnectionError):
        theirs.send(End(1))


def test_closing_wakes_the_other_end(ends):
    ours, theirs = ends
    closing = threading.Timer(0.1, theirs.close)
    closing.start()
    with pytest.raises(ConnectionError):
        ours.receive(None)
    closing.join()


def test_a_tensor_reaches_a_thread_as_the_same_object_and_a_process_as_a_copy():
    for kind in ("thread", "process"):
        ours, theirs = connected(kind)
        tensor = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
        ours.send(Begin(1, {"pixel_values": tensor}, 7))
        ours.send(Prefill(1, tensor, ()))
        inputs, kept = theirs.receive(1.0).inputs, theirs.receive(1.0).kept
        assert (inputs["pixel_values"] is kept is tensor) == (kind == "thread")
        assert torch.equal(kept.float(), tensor.float())
        ours.close()
        theirs.close()


def test_a_send_to_a_process_that_does_not_read_ends_after_the_timeout():
    ours, theirs = connected("process", timeout=0.2)
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        ours.send(Begin(1, {"pixel_values": torch.zeros(4 << 20)}, 7))
    assert 0.2 <= time.monotonic() - began < 10
    theirs.close()


def test_a_heartbeat_beats_until_its_end(ends):
    ours, theirs = ends
    with heartbeat(theirs.send):
        assert [ours.receive(5.0) for _ in range(3)] == [Loading()] * 3
    theirs.send(End(1))
    while (record := ours.receive(5.0)) == Loading():
        pass
    assert record == End(1) and ours.receive(0.3) is None


def test_a_heartbeat_ends_quietly_with_its_transport(ends):
    ours, theirs = ends
    ours.close()
    with heartbeat(theirs.send):
        time.sleep(0.3)  # an error in its thread would be told by pytest


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_on_a_gpu_is_complete_on_the_receivers_stream():
    ours, theirs = ThreadTransport.pair()
    for number in range(20):
        large = torch.full((4096, 4096), 1.0, device="cuda") @ torch.full((4096, 4096), float(number), device="cuda")
        ours.send(Prefill(number, large, ()))
        del large
        with torch.cuda.stream(torch.cuda.Stream()):
            assert bool((theirs.receive(1.0).kept == 4096.0 * number).all())
