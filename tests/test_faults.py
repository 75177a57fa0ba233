"""The draft is killed, stopped and slowed down at random moments: the words stay the target's, and nothing is left.

HIPPO_FAULTS=200 python -m pytest tests/test_faults.py     # more moments than the usual ones
"""

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hippo.bench.memory import with_children
from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from hippo.sequence import Sequence
from hippo.stats import Stats
from tests.drafts import draft
from tests.models import generated, inputs, model

MOMENTS = int(os.environ.get("HIPPO_FAULTS", "40"))
LONGEST = 60  # tokens


def kill(pid, dice):
    os.kill(pid, signal.SIGKILL)


def stop(pid, dice):
    os.kill(pid, signal.SIGSTOP)


def slow_down(pid, dice):
    for _ in range(dice.randint(1, 5)):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(dice.uniform(0.001, 0.05))
        os.kill(pid, signal.SIGCONT)
        time.sleep(dice.uniform(0.001, 0.02))


@pytest.fixture(scope="module")
def pair():
    shared = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    before = set(with_children(os.getpid()))
    of = Pair(model("qwen2_5_vl"), Draft(draft("same"), timeout=0.3))
    yield of
    of.close()
    assert set(with_children(os.getpid())) == before
    left = [Path("/dev/shm", name) for name in (os.listdir("/dev/shm") if Path("/dev/shm").is_dir() else ())]
    left, end = [path for path in left if path.name not in shared], time.monotonic() + 60
    while any(path.exists() for path in left):  # what other processes have there comes and goes
        assert time.monotonic() < end, left
        time.sleep(0.1)


def answer(of, seed, **options):
    stats = Stats()
    stream = Sequence(of, inputs("qwen2_5_vl", seed=seed), SamplingParams.of(max_new_tokens=LONGEST, **options), stats)
    return [token for tokens in stream for token in tokens], stats


@pytest.mark.parametrize("seed", range(MOMENTS))
def test_whatever_happens_to_the_draft_the_words_are_the_targets(pair, seed):
    dice = random.Random(seed)
    fault, wait = dice.choice((kill, stop, slow_down)), dice.uniform(0, 0.15)
    options = dict(
        decoder=dice.choice(("serial", "parallel")),
        pruner=dice.choice(("none", "hippo")),
        gamma=dice.choice((1, 4, "auto")),
    )
    process = pair.draft.worker()
    process.wait_loaded()

    def strike():
        time.sleep(wait)
        with suppress(ProcessLookupError):
            fault(process.pid, dice)

    striker = threading.Thread(target=strike)
    began = time.monotonic()
    striker.start()
    tokens, stats = answer(pair, seed % 8, **options)
    seconds = time.monotonic() - began
    striker.join()
    assert tokens == generated(model("qwen2_5_vl"), inputs("qwen2_5_vl", seed=seed % 8), max_new_tokens=LONGEST)
    assert seconds < 60, "a stopped draft is waited for 0.3 s, or ten times that while it reads; on a busy machine too"
    if fault is kill and stats.draft_lost:
        assert "died" in stats.draft_lost or "broke" in stats.draft_lost


def test_an_error_of_the_target_ends_the_answer_and_the_next_one_works(pair, monkeypatch):
    from hippo.forward import CachedModel

    pair.draft.worker().wait_loaded()  # before, so that only the target fails
    usual, calls = CachedModel.extend, []

    def failing(self, ids):
        calls.append(ids)
        if len(calls) == 3:
            raise RuntimeError("the machine is on fire")
        return usual(self, ids)

    monkeypatch.setattr(CachedModel, "extend", failing)
    with pytest.raises(RuntimeError, match="on fire"):
        answer(pair, 3, gamma=2)
    monkeypatch.undo()
    tokens, stats = answer(pair, 3)
    assert tokens == generated(model("qwen2_5_vl"), inputs("qwen2_5_vl", seed=3), max_new_tokens=LONGEST)
    assert not stats.draft_lost


def test_a_draft_that_is_stopped_while_it_loads_is_not_waited_for():
    of = Pair(model("qwen2_5_vl"), Draft(draft("same"), timeout=0.3))
    stop(of.draft.worker().pid, None)
    began = time.monotonic()
    tokens, stats = answer(of, 3)
    assert tokens == generated(model("qwen2_5_vl"), inputs("qwen2_5_vl", seed=3), max_new_tokens=LONGEST)
    assert "the draft model did not load" in stats.draft_lost and time.monotonic() - began < 30
    tokens, stats = answer(of, 3)
    assert not stats.draft_lost and stats.new_tokens == len(tokens), "the next request has a draft again"
    of.close()


def test_two_threads_get_their_own_answers(pair):
    pair.draft.worker().wait_loaded()
    got = {}

    def ask(seed):
        got[seed] = answer(pair, seed)[0]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        assert got[seed] == generated(model("qwen2_5_vl"), inputs("qwen2_5_vl", seed=seed), max_new_tokens=LONGEST)
