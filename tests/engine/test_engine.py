"""Several requests at once: each gets the text it gets alone, whatever becomes of the others."""

import asyncio
import copy
import gc
import os
import random
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hippo
from hippo.device import bytes_per_token
from hippo.draft import Plugin, plugin_of
from hippo.engine import Engine, State
from hippo.errors import BadRequest, Busy, MediaError
from hippo.forward import CachedModel
from hippo.pair import Draft, Pair
from hippo.params import SamplingParams
from hippo.pruning import Attention, Pruner
from hippo.request import Read, Request
from tests.models import FAMILIES, inputs, model, text_only

LONGEST = 14


class Ids:
    """A tokenizer that writes ids."""

    def decode(self, ids, **_):
        return "".join(f"{id} " for id in ids)


def asked(seed, **options):
    """A request that `read` makes a random clip of."""
    options = {"max_new_tokens": LONGEST} | options
    return Request([{"role": "user", "content": str(seed)}], SamplingParams.of(**options))


def engine_of(family, draft, place="inline", max_running=8, cache_memory=0, read=None):
    def reading(request, progress):
        seed = int(request.messages[0]["content"])
        of_request = text_only(family, seed) if seed < 0 else inputs(family, seed=seed, question=4 + seed % 5)
        return Read(of_request, None, request.params, (), 0.0)

    source = draft if isinstance(draft, Plugin) else model(family, draft or 0)
    pair = Pair(model(family), None if draft is None else Draft(source, place=place))
    return Engine(pair, Ids(), read or reading, max_running, cache_memory, readers=1)


def alone(family, request):
    engine = engine_of(family, None)
    answer = engine.submit(Request(request.messages, SamplingParams.of(method="ar", max_new_tokens=LONGEST))).result()
    return answer.token_ids[: request.params.max_new_tokens]


@pytest.fixture
def running():
    made = []

    def make(*args, **kwargs):
        made.append(engine_of(*args, **kwargs))
        if (draft := made[-1].pair.draft) is not None:
            draft.worker()  # a fork, before there is a reader's thread
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        engine.pair.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_gets_the_text_it_gets_alone(running, family):
    engine = running(family, 1)
    requests = [asked(seed, method=method) for seed, method in enumerate(("hippo", "sd", "ar", "sd", "hippo"))]
    streams = [engine.submit(request) for request in requests]
    for stream, request in zip(streams, requests, strict=True):
        assert stream.result().token_ids == alone(family, request)
    assert engine.scheduler.jobs == []


def test_a_first_token_is_not_held_back_by_the_second(running):
    engine = running("qwen2_5_vl", 7)
    stream = engine.submit(asked(0))
    next(iter(stream))
    assert [job.stats.new_tokens for job in engine.scheduler.running] == [1]
    assert stream.result().token_ids == alone("qwen2_5_vl", asked(0))


@pytest.mark.parametrize("place", ["process", "thread", "inline"])
def test_a_draft_anywhere_serves_several(running, place):
    engine = running("qwen2_5_vl", 0, place)  # the target's own weights: always right
    requests = [asked(seed, decoder=decoder) for seed, decoder in enumerate(("parallel", "serial", "auto"))]
    streams = [engine.submit(request) for request in requests]
    outputs = [stream.result() for stream in streams]
    for output, request in zip(outputs, requests, strict=True):
        assert output.token_ids == alone("qwen2_5_vl", request)
    assert any(output.stats.accepted for output in outputs)


def test_a_drafter_without_a_model_serves_several_and_fails_one_alone(running):
    class Repeats:
        """Proposes the last token again; fails in a prompt with a 7-token question."""

        def commit(self, tokens):
            self.tokens = [*getattr(self, "tokens", []), *tokens]

        def propose(self, count):
            assert self.tokens[:short] != prompts[3][:short]
            return self.tokens[-1:] * count

    requests = [asked(seed, method=method) for seed, method in enumerate(("hippo", "sd", "ar", "sd", "hippo"))]
    prompts = [inputs("qwen2_5_vl", seed=seed, question=4 + seed % 5)["input_ids"][0].tolist() for seed in range(5)]
    short = min(map(len, prompts))
    for drafter in ("ngram", Repeats):
        engine = running("qwen2_5_vl", plugin_of(drafter))
        streams = [engine.submit(request) for request in requests]
        for place, (stream, request) in enumerate(zip(streams, requests, strict=True)):
            output = stream.result()
            assert output.token_ids == alone("qwen2_5_vl", request)
            assert bool(output.stats.draft_lost) == (drafter is Repeats and place == 3) == bool(output.warnings)


@pytest.mark.parametrize("place", ["thread", "inline"])
@pytest.mark.parametrize("attention", [None, Attention()])
def test_a_pruner_that_fails_ends_its_own_request(running, attention, place):
    """Also one that is asked within the target's forward, as soon as it has its attention."""

    def fails(signals, keep_ratio):
        raise ValueError("what now?")

    engine, pruner = running("qwen2_5_vl", 1, place), Pruner("mine", fails, attention)
    streams = [engine.submit(asked(seed, **({"pruner": pruner} if seed == 1 else {}))) for seed in range(3)]
    with pytest.raises(BadRequest, match=r"^pruner 'mine' failed \(ValueError: what now\?\)"):
        streams[1].result()
    assert all(streams[place].result().token_ids == alone("qwen2_5_vl", asked(place)) for place in (0, 2))


def test_no_more_run_than_may_and_the_oldest_come_first(running):
    engine, most = running("qwen2_5_vl", 1, max_running=2), 0
    streams = [engine.submit(asked(seed)) for seed in range(6)]
    ended = []
    while len(ended) < 6:
        engine.step()
        most = max(most, len(engine.scheduler.running))
        ended += [place for place, one in enumerate(streams) if one.state is State.DONE and place not in ended]
    assert most == 2 and ended[0] in (0, 1) and ended[-1] in (4, 5)


def test_a_long_request_is_not_starved_by_short_ones(running):
    engine = running("qwen2_5_vl", None, max_running=2)
    long = engine.submit(asked(0, method="ar"))
    for seed in range(1, 40):
        engine.submit(asked(seed, method="ar", max_new_tokens=1)).result()
        if long.state is State.DONE:
            break
    assert long.state is State.DONE


def test_a_cancelled_request_leaves_the_others_untouched(running):
    engine = running("qwen2_5_vl", 1)
    requests = [asked(seed) for seed in range(4)]
    streams = [engine.submit(request) for request in requests]
    streams[0].cancel()  # before
    next(streams[1])
    streams[1].close()  # during
    assert list(streams[0]) == list(streams[1]) == []
    for place in (2, 3):
        assert streams[place].result().token_ids == alone("qwen2_5_vl", requests[place])
        streams[place].cancel()  # after
    assert engine.scheduler.jobs == []


def test_an_error_in_one_leaves_the_others_untouched(running):
    def read(request, progress):
        seed = int(request.messages[0]["content"])
        if seed == 1:
            raise MediaError("broken.mp4 is damaged")
        return Read(inputs("qwen2_5_vl", seed=seed), None, request.params, (), 0.0)

    engine = running("qwen2_5_vl", 1, read=read)
    streams = [engine.submit(asked(seed)) for seed in range(3)]
    with pytest.raises(MediaError, match="damaged"):
        streams[1].result()
    assert all(len(streams[place].result().token_ids) == LONGEST for place in (0, 2))


def test_a_forward_for_all_that_fails_is_made_for_each(running, monkeypatch):
    engine = running("qwen2_5_vl", 1)

    def fails(parts):
        parts[0][0].extend(parts[0][1])  # it has written some
        raise RuntimeError("no room for all")

    monkeypatch.setattr("hippo.forward.cached_model._extend_together", fails)
    requests = [asked(seed, method=method) for seed, method in enumerate(("ar", "sd", "ar"))]
    streams = [engine.submit(request) for request in requests]
    for stream, request in zip(streams, requests, strict=True):
        assert stream.result().token_ids == alone("qwen2_5_vl", request)


def test_a_lost_draft_leaves_all_to_the_target(running):
    engine = running("qwen2_5_vl", 1, "process")
    requests = [asked(seed, decoder="serial", gamma=2) for seed in range(3)]  # auto may rest, and not notice
    streams = [engine.submit(request) for request in requests]
    next(streams[0])
    os.kill(engine.pair.draft.worker().pid, 9)
    for stream, request in zip(streams, requests, strict=True):
        stream.result()
        assert stream.output.token_ids == alone("qwen2_5_vl", request)
    assert any("signal 9" in stream.output.stats.draft_lost for stream in streams)


def test_threads_share_the_work(running):
    engine, answers = running("qwen2_5_vl", 1), {}

    def ask(seed):
        answers[seed] = engine.submit(asked(seed)).result().token_ids

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {seed: alone("qwen2_5_vl", asked(seed)) for seed in range(4)}


def test_asyncio(running):
    engine = running("qwen2_5_vl", 1)

    async def all_of_them():
        first, second, third = (engine.submit(asked(seed)) for seed in range(3))
        pieces = [piece async for piece in first]
        waiting = asyncio.ensure_future(second._finish())
        await asyncio.sleep(0)
        waiting.cancel()
        return "".join(pieces), await third

    text, output = asyncio.run(all_of_them())
    assert text == Ids().decode(alone("qwen2_5_vl", asked(0)))
    assert output.token_ids == alone("qwen2_5_vl", asked(2))


def test_a_request_in_a_forked_process_is_refused(running, monkeypatch):
    engine = running("qwen2_5_vl", None)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(Busy, match="forked"):
        engine.submit(asked(0))


def test_what_is_under_way_when_the_engine_is_closed_says_so(running):
    engine = running("qwen2_5_vl", None)
    stream = engine.submit(asked(0, method="ar"))
    next(stream)
    engine.close()
    with pytest.raises(Busy, match="closed"):
        next(stream)
    assert len(engine.submit(asked(0, method="ar")).result().token_ids) == LONGEST, "it can be used again"


def test_closing_waits_for_the_step_under_way_and_nothing_goes_on(running, monkeypatch):
    engine, reading, errors = running("qwen2_5_vl", None), threading.Event(), []
    step = engine._prefill

    def slow(job):
        reading.set()
        time.sleep(0.3)
        step(job)

    monkeypatch.setattr(engine, "_prefill", slow)
    stream = engine.submit(asked(0, method="ar"))

    def ask():
        with pytest.raises(Busy, match="closed") as error:
            list(stream)
        errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    reading.wait()
    engine.close()
    thread.join()
    assert errors and engine.scheduler.jobs == [] and stream._job.sequence is None


def test_an_error_of_the_engine_itself_is_raised_and_it_works_again(running, monkeypatch):
    engine = running("qwen2_5_vl", None)

    async def ask():
        return await engine.submit(asked(0, method="ar"))

    with monkeypatch.context() as broken:
        broken.setattr(engine.scheduler, "admit", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            asyncio.run(ask())
    assert len(asyncio.run(ask()).token_ids) == LONGEST


def test_a_callback_may_ask_while_its_own_prompt_is_read(running, monkeypatch):
    monkeypatch.setattr("hippo.forward.cached_model._PART", 8)
    engine, others = running("qwen2_5_vl", 1), []

    def progress(phase, share):
        if not others:
            others.append(engine.submit(asked(1)))
            others[0].result()

    stream = engine.submit(asked(0), progress)
    assert stream.result().token_ids == alone("qwen2_5_vl", asked(0))
    assert others[0].output.token_ids == alone("qwen2_5_vl", asked(1))
    assert engine.scheduler.jobs == []


def test_a_request_that_is_cancelled_while_it_is_read_just_ends(running):
    def read(request, progress):
        stream.cancel()
        return Read(inputs("qwen2_5_vl"), None, request.params, (), 0.0)

    engine = running("qwen2_5_vl", None, read=read)
    stream = engine.submit(asked(0))
    assert list(stream) == [] and engine.scheduler.jobs == []


def test_what_memory_cannot_keep_for_later_costs_no_answer(running, monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("no room for a copy")

    monkeypatch.setattr(CachedModel, "keys_and_values", full)
    engine = running("qwen2_5_vl", None, cache_memory=None)
    assert engine.submit(asked(0, method="ar")).result().token_ids == alone("qwen2_5_vl", asked(0))
    assert engine.cache.size == 0


def test_requests_that_enter_together_share_the_memory(running, monkeypatch):
    engine = running("qwen2_5_vl", None)
    streams = [engine.submit(asked(seed, method="ar")) for seed in range(3)]
    for job in engine.scheduler.waiting:
        job.reading = Future()
        job.reading.set_result(engine._read(job.request, None))
        job.state = State.READING
    config, tokens = engine.pair.target.config, job.reading.result().inputs["input_ids"].shape[-1] + LONGEST
    room = 2.5 * tokens * bytes_per_token(config, torch.float32)
    monkeypatch.setattr("hippo.engine.engine.free_memory", lambda device: room)
    engine.step()
    assert 0 < len(engine.scheduler.running) < 3
    assert all(len(stream.result().token_ids) == LONGEST for stream in streams)


def test_requests_wait_where_memory_has_no_room_for_one_more(running, monkeypatch):
    engine = running("qwen2_5_vl", None)
    monkeypatch.setattr("hippo.engine.engine.free_memory", lambda device: 0)
    streams = [engine.submit(asked(seed, method="ar")) for seed in range(3)]
    most = 0
    while any(stream.state is not State.DONE for stream in streams):
        engine.step()
        most = max(most, len(engine.scheduler.running))
    assert most == 1 and all(len(stream.output.token_ids) == LONGEST for stream in streams)


def test_nobody_may_run_none():
    with pytest.raises(BadRequest, match="max_running 0"):
        engine_of("qwen2_5_vl", None, max_running=0)


def test_a_dropped_stream_is_cancelled(running):
    engine = running("qwen2_5_vl", None)
    stream = engine.submit(asked(0, method="ar"))
    next(stream)
    held = weakref.ref(stream._job.sequence.target)
    del stream
    gc.collect()
    engine.submit(asked(1, method="ar")).result()
    gc.collect()
    assert held() is None and engine.scheduler.jobs == []


def test_many_requests_of_all_sizes_with_cancels(running):
    """Every text is right, and nothing is left over. HIPPO_REQUESTS sets how many."""
    count = int(os.environ.get("HIPPO_REQUESTS", "60"))
    engine, chance = running("qwen2_5_vl", 1, "thread", max_running=4, cache_memory=1 << 20), random.Random(0)
    wanted = {seed: alone("qwen2_5_vl", asked(seed)) for seed in range(12)}
    done, memory, waiting = 0, 0, []
    while done < count:
        while len(waiting) < 6:
            seed, longest = chance.randrange(12), chance.randint(1, LONGEST)
            options = {"max_new_tokens": longest, "method": chance.choice(("ar", "sd", "pearl", "hippo"))}
            waiting.append((engine.submit(asked(seed, **options)), seed, longest))
        stream, seed, longest = waiting.pop(chance.randrange(len(waiting)))
        done += 1
        if done == 100:
            memory = resident()
        if chance.random() < 0.2:
            stream.cancel()
        else:
            assert stream.result().token_ids == wanted[seed][:longest]
    for stream, *_ in waiting:
        stream.close()
    engine.step()
    assert engine.scheduler.jobs == [] and engine.cache.size <= 1 << 20
    assert count < 1000 or resident() <= 1.03 * memory


def resident():
    """Pages of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.parametrize("width", [8, "auto"])
def test_in_half_precision_each_gets_the_text_of_a_lone_request(width):
    target = copy.deepcopy(model("qwen2_5_vl")).to(torch.bfloat16)
    draft = copy.deepcopy(model("qwen2_5_vl", 1)).to(torch.bfloat16)
    pair = Pair(target, Draft(draft, place="inline"))
    if width == "auto" and not CachedModel.of(pair.family, target).batch_invariant:
        pytest.skip("the products of this CPU are not batch-invariant")

    def read(request, progress):
        return Read(inputs("qwen2_5_vl", seed=int(request.messages[0]["content"])), None, request.params, (), 0.0)

    def engine():
        return Engine(pair, Ids(), read, cache_memory=0, readers=1)

    requests = [asked(seed, verify_width=width, method=("sd", "ar")[seed % 2]) for seed in range(4)]
    lone = [engine().submit(replace(r, params=replace(r.params, decoder="ar"))).result().token_ids for r in requests]
    together = engine()
    streams = [together.submit(request) for request in requests]
    assert [stream.result().token_ids for stream in streams] == lone
    pair.close()


def test_the_library_answers_many(tmp_path):
    with hippo.load("tiny") as llm:
        clip = hippo.read_video("hippo/bundled/demo.mp4", frames=4)
        questions = ["What happens?", "Describe the video in detail.", ""]
        requests = [
            Request(
                [{"role": "user", "content": [{"type": "video", "video": clip}, {"type": "text", "text": question}]}],
                SamplingParams(max_new_tokens=12),
            )
            for question in questions[:2]
        ]
        missing = Request([{"role": "user", "content": [{"type": "video", "video": tmp_path / "no.mp4"}]}])
        ended = []
        answers = llm.generate_many([*requests, missing], on_done=lambda place, answer: ended.append(place))
        assert sorted(ended) == [0, 1, 2] and isinstance(answers[2], MediaError)
        assert [a.token_ids for a in answers[:2]] == [llm.generate(request).token_ids for request in requests]
        assert asyncio.run(llm.agenerate(requests[0])).token_ids == answers[0].token_ids


def test_a_thread_works_only_while_asyncio_waits(running):
    engine = running("qwen2_5_vl", 1)

    async def answer():
        stream = engine.submit(asked(0))
        await stream
        while engine._thread is not None:
            await asyncio.sleep(0.001)
        assert [piece async for piece in stream] == []

    asyncio.run(answer())
    stream = engine.submit(asked(1))
    next(stream)
    assert engine._thread is None
    stream.close()
