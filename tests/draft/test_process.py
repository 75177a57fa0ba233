"""The draft's process: starting either way, failing to start, ending."""

import os
import signal
import threading
import time

import pytest

from hippo.draft import process as module
from hippo.draft.child import Forked, is_thread, may_fork
from hippo.draft.process import DraftLost, DraftProcess
from hippo.errors import HippoError
from tests.models import model


@pytest.fixture(params=["forked", "fresh"])
def way(request, monkeypatch):
    """Each of the two ways to start a process."""
    monkeypatch.setattr(module, "may_fork", lambda *_: request.param == "forked")
    monkeypatch.setattr(module, "shares", lambda: (1, 1))
    return request.param


def test_a_model_that_does_not_load_is_explained(way):
    process = DraftProcess("/nowhere", "auto", "cpu", 20.0)
    with pytest.raises(HippoError, match="the draft model did not load"):
        process.wait_loaded()
    process.close()
    assert not process.alive


def test_a_model_in_memory_is_served_and_close_ends_the_process(way):
    process = DraftProcess(model("qwen2_5_vl", 7, 1), "auto", "cpu", 20.0)
    assert isinstance(process._child, Forked) == (way == "forked")
    loaded = process.wait_loaded()
    assert loaded.vocabulary == 160 and process.alive
    assert process._copy is None or not os.path.exists(process._copy), "gone as soon as it is loaded"
    process.close()
    assert not process.alive
    with pytest.raises(DraftLost):
        process.send("anything")


def test_a_killed_process_is_noticed_and_named(way):
    process = DraftProcess(model("qwen2_5_vl", 7, 1), "auto", "cpu", 20.0)
    process.wait_loaded()
    os.kill(process.pid, 9)
    with pytest.raises(DraftLost, match="signal 9"):
        process.receive()
    assert not process.alive
    process.close()


@pytest.mark.parametrize("way", ["forked"], indirect=True)
def test_a_fork_keeps_no_file_and_no_handler_of_its_parent(way):
    reading, writing = os.pipe()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    process = DraftProcess(model("qwen2_5_vl", 7, 1), "auto", "cpu", 20.0)
    signal.signal(signal.SIGUSR1, before)
    process.wait_loaded()
    os.close(writing)
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b"", "the last writer closed it"
    os.close(reading)
    os.kill(process.pid, signal.SIGUSR1)
    with pytest.raises(DraftLost, match=f"signal {signal.SIGUSR1}"):
        process.receive()
    process.close()


def test_where_there_is_no_room_for_a_fork_a_fresh_process_is_started(monkeypatch):
    monkeypatch.setattr(module, "may_fork", lambda *_: True)

    def full():
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", full)
    process = DraftProcess(model("qwen2_5_vl", 7, 1), "auto", "cpu", 20.0)
    assert not isinstance(process._child, Forked) and process.wait_loaded().vocabulary == 160
    process.close()


def test_a_fork_only_where_it_is_safe():
    while threading.active_count() > 1:
        time.sleep(0.01)
    assert may_fork("cpu", 1) and not may_fork("cpu", 2) and not may_fork("cuda:0", 1)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert not may_fork("cpu", 1)
    done.set()
    thread.join()


def test_a_thread_serves_the_model_itself_and_goes_with_its_pipe():
    process = DraftProcess(model("qwen2_5_vl", 7, 1), "auto", "cpu", 20.0, threaded=True)
    thread = process._child._thread
    assert process.wait_loaded().vocabulary == 160 and process.alive and process._copy is None
    assert process.pid == os.getpid() and thread.is_alive()
    process.close()
    thread.join(10)
    assert not process.alive and not thread.is_alive()


def test_a_thread_that_fails_says_why():
    process = DraftProcess("/nowhere", "auto", "cpu", 20.0, threaded=True)
    with pytest.raises(HippoError, match=r"the draft model did not load .*failed: OSError"):
        process.wait_loaded()
    process.close()
    assert not process.alive


def test_a_thread_that_hangs_is_left_to_itself(monkeypatch):
    heard, go = threading.Event(), threading.Event()

    def hang(*_):
        heard.set()
        go.wait(30)
        return 0

    monkeypatch.setattr(module, "work", hang)
    process = DraftProcess(model("qwen2_5_vl", 7, 1), "auto", "cpu", 0.1, threaded=True)
    assert heard.wait(10)
    with pytest.raises(DraftLost, match=r"silent for 0\.1 s"):
        process.receive()
    process.close()
    assert not process.alive
    go.set()


def test_a_thread_only_where_both_models_are_on_one_gpu():
    assert is_thread("auto", "cuda:0", "cuda:0") and is_thread("auto", "cuda", "cuda:0")
    assert not is_thread("auto", "cuda:0", "cuda:1") and not is_thread("auto", "cpu", "cpu")
    assert not is_thread("process", "cuda:0", "cuda:0") and is_thread("thread", "cpu", "cpu")
    with pytest.raises(HippoError, match="use one of: auto, process, thread"):
        is_thread("cloud", "cpu", "cpu")
