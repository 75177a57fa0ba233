"""The worker's handle: starting it each way, failing to start, silence while it loads, ending."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from hippo.bench.memory import with_children
from hippo.draft import process as module
from hippo.draft import worker as worker_module
from hippo.draft.child import Forked, Threaded, may_fork
from hippo.draft.messages import End
from hippo.draft.process import LARGE, DraftWorker, placement
from hippo.errors import BadRequest, CheckpointError, DraftLost
from hippo.families import VideoGrid
from hippo.stats import Stats
from tests.models import generated, inputs, model


@pytest.fixture(params=["fork", "fresh", "thread"])
def way(request, monkeypatch):
    """Each of the ways to run a worker."""
    monkeypatch.setattr(module, "may_fork", lambda *_: request.param == "fork")
    monkeypatch.setattr(module, "shares", lambda: (1, 1))
    return request.param


def started(way, source=None, timeout=20.0):
    source = model("qwen2_5_vl", 7, 1) if source is None else source
    return DraftWorker(source, "auto", "cpu", timeout, place="thread" if way == "thread" else "process")


def ended(worker, seconds=20):
    """Wait until a thread has really gone, so that the next test may fork."""
    worker.close()
    if isinstance(worker._child, Threaded):
        worker._child._thread.join(seconds)
        assert not worker._child._thread.is_alive()
    assert not worker.alive


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("way", ["fork", "thread"], indirect=True)  # a fresh process has a fork's transport
def test_a_model_that_does_not_load_is_explained(way):
    worker = started(way, "/nowhere")
    with pytest.raises(CheckpointError, match=r"the draft model did not load \(OSError: .*\): check --draft"):
        worker.wait_loaded()
    assert not worker.alive
    ended(worker)


def test_a_model_in_memory_is_served_and_nothing_is_left_after_close(way):
    files, processes = open_files(), set(with_children(os.getpid()))
    worker = started(way)
    assert isinstance(worker._child, {"fork": Forked, "fresh": subprocess.Popen, "thread": Threaded}[way])
    assert worker.loaded is None and (worker.pid == os.getpid()) == (way == "thread")
    loaded = worker.wait_loaded()
    assert loaded is worker.loaded and loaded.vocabulary == 160 and worker.alive
    assert (worker._copy is not None) == (way == "fresh")
    assert worker._copy is None or not os.path.exists(worker._copy), "removed once it is loaded"
    ended(worker)
    with pytest.raises(DraftLost, match="the draft was closed"):
        worker.send(End(1))
    del worker
    assert open_files() == files and set(with_children(os.getpid())) == processes


@pytest.mark.parametrize("way", ["fork", "thread"], indirect=True)
def test_two_requests_interleaved_get_the_tokens_they_get_alone(way):
    worker = started(way, model("qwen2_5_vl"))
    worker.wait_loaded()
    drafters, expected = {}, {}
    for seed in (1, 2):
        request, stats = inputs("qwen2_5_vl", seed=seed), Stats()
        expected[seed] = generated(model("qwen2_5_vl"), request, max_new_tokens=40)
        drafters[seed] = worker.drafter(stats, on_step=lambda _: None, limit=160, shared_vision=False)
        drafters[seed].begin(request)
    for seed, drafter in drafters.items():
        drafter.prefill(torch.arange(24), (VideoGrid(4, 2, 3),))
        drafter.commit(0, expected[seed][:1])
    while not all(drafter.ready() for drafter in drafters.values()):
        time.sleep(0.001)
    done = {1: 1, 2: 1}
    while min(done.values()) < 20:
        for drafter in drafters.values():
            drafter.propose(5)
        for seed, drafter in drafters.items():
            tokens = [proposal.id for proposal in drafter.take(3)]
            assert tokens == expected[seed][done[seed] : done[seed] + 3]
            done[seed] += 3
            if seed == 2:  # two are rolled back, which is no matter to the other
                done[seed] -= 1
                drafter.commit(done[seed] - 1, [expected[seed][done[seed] - 1]])
    for drafter in drafters.values():
        drafter.end()
    assert worker.alive and not worker._inboxes
    ended(worker)


@pytest.mark.parametrize("way", ["fork", "fresh"], indirect=True)
def test_a_killed_process_is_noticed_and_named(way):
    worker = started(way)
    if way == "fork":  # a fresh one has seconds of imports before it, and is as dead
        worker.wait_loaded()
    os.kill(worker.pid, 9)
    with pytest.raises(DraftLost, match="signal 9"):
        worker.fetch(wait=True)
    assert not worker.alive


def slow(seconds):
    def load(*_):
        time.sleep(seconds)
        return model("qwen2_5_vl", 7, 1)

    return load


@pytest.mark.parametrize("way", ["fork", "thread"], indirect=True)
def test_a_slow_load_is_waited_for(way, monkeypatch):
    monkeypatch.setattr(module, "_LOADING_SILENCE", 0.5)
    monkeypatch.setattr(worker_module, "load_draft", slow(1.5))
    worker = started(way, timeout=0.5)
    assert worker.wait_loaded().vocabulary == 160
    ended(worker)


@pytest.mark.parametrize("way", ["fork", "fresh"], indirect=True)
def test_a_process_that_is_stopped_while_it_loads_is_given_up(way, monkeypatch):
    monkeypatch.setattr(module, "_LOADING_SILENCE", 0.5)
    monkeypatch.setattr(worker_module, "load_draft", slow(30))
    worker = started(way, timeout=0.5)  # one that is fresh is stopped while it imports torch
    os.kill(worker.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(DraftLost, match=r"did not load \(the draft's process was silent for 0\.5 s\)"):
        worker.wait_loaded()
    assert time.monotonic() - began < 20 and not worker.alive
    with pytest.raises(DraftLost, match="silent"):
        worker.wait_loaded()


@pytest.mark.parametrize("way", ["fork"], indirect=True)
def test_a_fork_keeps_no_file_and_no_handler_of_its_parent(way):
    reading, writing = os.pipe()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    worker = started(way)
    signal.signal(signal.SIGUSR1, before)
    worker.wait_loaded()
    os.close(writing)
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b"", "the last writer closed it"
    os.close(reading)
    os.kill(worker.pid, signal.SIGUSR1)
    with pytest.raises(DraftLost, match=f"signal {signal.SIGUSR1}"):
        worker.fetch(wait=True)


def test_a_fresh_process_where_there_is_no_room_for_a_fork_is_heard_before_it_has_imported_torch(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit(7)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setattr(module, "may_fork", lambda *_: True)

    def full():
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", full)
    worker = started("fresh")
    assert isinstance(worker._child, subprocess.Popen)
    assert type(worker._receive(20.0)).__name__ == "Loading"
    with pytest.raises(DraftLost, match="died with code 7"):
        worker.wait_loaded()


def test_a_fork_only_where_it_is_safe(monkeypatch):
    with monkeypatch.context() as only:
        only.setattr(threading, "active_count", lambda: 1)  # other tests may have left threads
        assert may_fork("cpu", 1) and not may_fork("cpu", 2) and not may_fork("cuda:0", 1)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    assert not may_fork("cpu", 1)
    done.set()
    thread.join()


def test_a_thread_that_hangs_is_counted_as_ended(monkeypatch):
    hanging, go = threading.Event(), threading.Event()

    def hang(*_):
        hanging.set()
        go.wait(120)
        return 0

    monkeypatch.setattr(module, "work", hang)
    worker = started("thread", timeout=0.1)
    assert hanging.wait(60)
    with pytest.raises(DraftLost, match=r"silent for 0\.1 s"):
        worker.fetch(wait=True)
    assert not worker.alive
    go.set()
    worker._child._thread.join(60)


@pytest.mark.parametrize("way", ["fork", "thread"], indirect=True)  # a fresh process has a fork's transport
def test_close_from_another_thread_ends_a_wait(way):
    worker = started(way)
    worker.wait_loaded()
    closing = threading.Timer(0.2, worker.close)
    closing.start()
    began = time.monotonic()
    with pytest.raises(DraftLost, match="the draft was closed"):
        worker.fetch(wait=True)
    closing.join()
    assert time.monotonic() - began < 20
    ended(worker)


def test_a_handle_that_is_collected_ends_its_worker(way):
    worker = started(way)
    if way != "fresh":  # which need not end its imports first
        worker.wait_loaded()
    child = worker._child
    del worker
    gc.collect()
    assert module.wait_for(child, 60) is not None
    if way == "thread":
        child._thread.join(60)


def test_an_interpreter_that_exits_leaves_no_traceback_and_no_process():
    script = (
        "import sys\n"
        "from hippo.checkpoints import BUNDLED\n"
        "from hippo.draft import DraftWorker\n"
        "worker = DraftWorker(BUNDLED / 'tiny' / 'draft', 'auto', 'cpu', 20.0, place=sys.argv[1])\n"
        "worker.wait_loaded()\n"
        "print(worker.pid)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script, place], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for place in ("process", "thread")
    ]
    for process in both:
        pid, errors = process.communicate(timeout=600)
        assert process.returncode == 0 and b"Traceback" not in errors, errors
        assert int(pid) and not Path(f"/proc/{int(pid)}").exists()


def test_a_thread_only_where_both_models_are_on_one_gpu():
    assert placement("auto", "cuda:0", "cuda:0") == placement("auto", "cuda", "cuda:0") == "thread"
    assert placement("auto", "cuda:0", "cuda:1") == placement("auto", "cpu", "cpu", LARGE) == "process"
    assert placement("auto", "cpu", "cpu", LARGE + 1) == "inline"
    assert placement("process", "cuda:0", "cuda:0") == "process" and placement("thread", "cpu", "cpu") == "thread"
    with pytest.raises(BadRequest, match="cloud"):
        placement("cloud", "cpu", "cpu")
