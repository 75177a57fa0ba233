"""/v1/chat/completions, by OpenAI's client and by hand."""

import asyncio
import base64
import gc
import io
import json
import os
import signal
import threading
import time
from contextlib import closing

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from PIL import Image

import hippo
from hippo.cli.demo import CLIP
from hippo.engine.scheduler import Job
from hippo.sequence import Sequence
from hippo.serve.chat import StopCut
from hippo.serve.media import MediaPolicy
from hippo.serve.schema import ChatBody
from hippo.serve.service import Service
from hippo.video import read_video
from tests.serve.conftest import QUESTION, URL, asked, serving


def ask(client, messages=None, **options):
    return client.chat.completions.create(model="tiny", messages=messages or asked(), **options)


def pieces(stream):
    return [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]


def test_the_words_are_the_librarys(client, expected):
    answer = ask(client, extra_body={"keep_ratio": 0.1})
    assert answer.choices[0].message.content == expected.text and answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens == expected.stats.prompt_tokens
    assert answer.usage.prompt_tokens_details.video_tokens == expected.stats.video_tokens == 512
    ours = answer.usage.speculative
    assert 0 < ours["accepted"] <= ours["drafted"] and ours["kept_video_tokens"] == 51 and not ours["draft_lost"]


def test_a_pair_without_a_draft_model(expected):
    with hippo.load("tiny", "ngram", max_running=2) as llm, serving(Service(llm, "tiny", MediaPolicy())) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        answer = ask(client)
        assert answer.choices[0].message.content == expected.text
        ours = answer.usage.speculative
        assert ours["kept_video_tokens"] == 0 and not ours["draft_lost"]
        body = {"pruner": "os:system"}
        with pytest.raises(openai.BadRequestError, match="pruner"):
            ask(client, extra_body=body)


def test_a_stream_has_the_same_words_and_the_usage_last(client, expected):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(pieces(chunks)) == expected.text and len(chunks) > 10
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "stop"
    assert not chunks[-1].choices and chunks[-1].usage.prompt_tokens_details.cached_tokens > 500
    assert all(chunk.usage is None for chunk in chunks[:-1])
    every = list(ask(client, stream=True, max_tokens=3, stream_options={"continuous_usage_stats": True}))
    assert [chunk.usage.completion_tokens for chunk in every][-1] == 3 and every[-1].choices[
        0
    ].finish_reason == "length"


def test_several_clients_of_asyncio_at_once(url, expected):
    async def all_of_them():
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, max_tokens=20 + place) for place in range(6)))

    for place, answer in enumerate(asyncio.run(all_of_them())):
        assert expected.text.startswith(answer.choices[0].message.content)
        assert answer.usage.completion_tokens == 20 + place


def test_every_way_to_give_a_clip(client, llm, expected):
    frames = read_video(CLIP, frames=16).frames
    pictures = []
    for frame in frames:
        Image.fromarray(frame).save(file := io.BytesIO(), "JPEG", quality=95)
        pictures.append(base64.b64encode(file.getvalue()).decode())
    ways = {
        CLIP.as_uri(): expected.text,
        "data:video/jpeg;base64," + ",".join(pictures): None,
    }
    for url, text in ways.items():
        answer = ask(client, asked(url), max_tokens=64 if text is None else 256)
        assert answer.usage.prompt_tokens_details.video_tokens == 512
        assert text is None or answer.choices[0].message.content == text
    for messages, extra, same in (
        (asked(max_frames=4), {}, {"frames": 4}),
        (asked(), {"media_io_kwargs": {"video": {"num_frames": 4}}}, {"frames": 4}),
        (asked(), {"media_io_kwargs": {"video": {"fps": 1.5}}}, {"fps": 1.5}),
        (asked(fps=3.0, max_frames=6), {}, {"fps": 3.0, "max_frames": 6}),
    ):
        answer = ask(client, messages, extra_body=extra, max_tokens=16)
        own = llm.generate(CLIP, QUESTION, **same, max_new_tokens=16)
        assert answer.usage.prompt_tokens_details.video_tokens == own.stats.video_tokens != 512
        assert answer.choices[0].message.content == own.text
    smaller = ask(client, extra_body={"mm_processor_kwargs": {"max_pixels": 56 * 56}}, max_tokens=1)
    assert smaller.usage.prompt_tokens_details.video_tokens < 512
    picture = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{pictures[0]}"}}]
    assert ask(client, [{"role": "user", "content": picture}], max_tokens=1).usage.prompt_tokens > 64
    assert ask(client, [{"role": "user", "content": "Hello"}], max_tokens=2).usage.completion_tokens <= 2


def test_a_seed_method_and_ratio_are_the_librarys(client, llm):
    options = dict(temperature=1.3, top_p=0.9, seed=7)
    own = llm.generate(CLIP, QUESTION, max_new_tokens=30, **options).text
    answer = ask(client, max_tokens=30, **options, extra_body={"method": "ar"})
    assert answer.choices[0].message.content == own and answer.usage.speculative["drafted"] == 0
    three = ask(client, max_tokens=30, n=3, temperature=2.0, seed=7)
    assert len({choice.message.content for choice in three.choices}) == 3
    again = ask(client, max_tokens=30, n=3, temperature=2.0, seed=7, stream=True)
    texts = ["", "", ""]
    for chunk in again:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in three.choices]
    kept = ask(client, max_tokens=2, extra_body={"keep_ratio": 0.5}).usage.speculative["kept_video_tokens"]
    assert kept == 256


def test_log_probabilities_are_the_targets(client, llm):
    own = llm.generate(CLIP, QUESTION, max_new_tokens=12, logprobs=2).tokens
    answer = ask(client, max_tokens=12, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    streamed = [
        one
        for chunk in ask(client, max_tokens=12, logprobs=True, top_logprobs=2, stream=True)
        for one in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert len(answer) == 12 and [one.token for one in streamed] == [one.token for one in answer]
    assert [one.logprob for one in streamed] == pytest.approx([one.logprob for one in answer], abs=1e-5)
    for ours, token in zip(answer, own, strict=True):
        assert ours.logprob == pytest.approx(token.logprob, abs=1e-5) and len(ours.top_logprobs) == 2
        assert bytes(ours.bytes).decode() == ours.token
    assert ask(client, max_tokens=1, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_a_stop_string_is_not_shown(client, expected):
    stop = expected.text[60:75]
    for options in ({}, {"stream": True}):
        answer = ask(client, stop=["never said", stop], **options)
        text = "".join(pieces(answer)) if options else answer.choices[0].message.content
        assert text == expected.text[:60]
    assert ask(client, stop=stop).choices[0].stop_reason == stop


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_text_is_cut_before_the_first_stop_string_however_it_comes(text, stops, data):
    cut, shown, rest = StopCut(stops), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown, rest = shown + cut.push(rest[:size]), rest[size:]
        assert text.startswith(shown) and not any(stop in shown for stop in stops)
    shown += cut.push(None)
    # The one that is whole first: text beyond it has not come yet.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert len(shown) <= min(ends, default=len(text)) and (ends or shown == text)


def test_the_fields_are_those_of_vllm(url):
    """Recorded of vLLM 0.32, less what it always leaves null."""
    body = {"model": "tiny", "messages": asked(), "max_tokens": 3, "logprobs": True, "top_logprobs": 1}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
    assert {"id", "object", "created", "model", "choices", "usage"} <= set(answer)
    assert {"index", "message", "logprobs", "finish_reason", "stop_reason"} <= set(answer["choices"][0])
    assert {"role", "content", "refusal"} <= set(answer["choices"][0]["message"])
    assert set(answer["choices"][0]["logprobs"]["content"][0]) == {"token", "logprob", "bytes", "top_logprobs"}
    assert {"prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"} <= set(answer["usage"])
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: {") for line in lines[:-1])
    first, *_, last = (json.loads(line[6:]) for line in lines[:-1])
    assert first["object"] == "chat.completion.chunk" and first["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "",
    }
    assert last["choices"][0]["finish_reason"] == "length"


SECRET = str(CLIP)  # of the server's own disk, and not by a file:// URL
CONTENT = {"type": "video_url", "video_url": {"url": URL}}
PARTS = [  # ways around the rules about media, and their errors
    ({"type": "source", "source": SECRET}, "messages", "source"),
    ({"type": "source", "source": f"file://{SECRET}"}, "messages", "source"),
    ({"type": "source"}, "messages", "source"),
    ({"type": None, "video": URL}, "messages", "None"),
    ({"type": ["video"], "video": URL}, "messages", "video"),
    ({"type": "video", "source": SECRET}, None, "no 'video'"),
    ({"type": "video", "video": SECRET}, None, "named by"),
    ({"type": "video", "path": SECRET}, None, "named by"),
    ({"type": "video", "video": [URL, SECRET]}, "video", "no URL"),
    ({"type": "image_url", "image_url": {"url": SECRET}}, None, "named by"),
    ({"type": "video_url", "video_url": {"url": URL, "type": "source", "source": SECRET}}, "video_url", "type"),
    ({"type": "video_url", "video_url": {"url": URL, "video": SECRET}}, "video_url", "video"),
    ({"type": "video_url", "video_url": {"url": URL, "keys": {"video": SECRET}}}, "video_url", "keys"),
    (CONTENT | {"keys": 3}, "messages", "keys"),
    (CONTENT | {"keys": {"source": SECRET}}, "messages", "keys"),
    (CONTENT | {"options": {"fetch": True}}, "messages", "options"),
    (CONTENT | {"source": SECRET}, None, "source"),
    (CONTENT | {"video": SECRET}, None, "named by"),
]


@pytest.mark.parametrize(
    ("change", "status", "param", "words"),
    [
        ({"model": "nope"}, 404, "model", "does not exist"),
        ({"messages": []}, 400, None, "no messages"),
        ({"messages": None}, 400, "messages", "list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, None, "robot"),
        ({"messages": [{"content": "x"}]}, 400, None, "role"),
        ({"messages": asked("data:video/mp4;base64,AAAA")}, 400, None, "is not a video"),
        ({"messages": asked("data:video/mp4;base64,")}, 400, None, "empty"),
        ({"messages": asked("/etc/passwd")}, 400, None, "named by"),
        ({"messages": asked("file:///etc/passwd")}, 400, None, "may not be read"),
        ({"messages": asked(speed=2)}, 400, "video_url", "speed"),
        ({"messages": [{"role": "user", "content": [{"type": "movie", "movie": "x"}]}]}, 400, "messages", "movie"),
        *(({"messages": [{"role": "user", "content": [part]}]}, 400, param, words) for part, param, words in PARTS),
        ({"messages": asked() * 17}, 400, None, "takes 16"),
        ({"messages": [{"role": "user", "content": "word " * 500_000}]}, 400, "messages", "too long"),
        ({"messages": [{"role": "user", "content": "a"}] * 40_000}, 400, "messages", "too long"),
        ({"mm_processor_kwargs": {"min_pixels": 10**12}}, 413, None, "memory"),
        ({"max_tokens": 10**6}, 400, "max_tokens", "context"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 400, None, "differ"),
        ({"temperature": -1}, 400, "temperature", "greater"),
        ({"temperature": "hot"}, 400, "temperature", "number"),
        ({"top_p": 0}, 400, "top_p", "greater"),
        ({"n": 0}, 400, "n", "greater"),
        ({"n": 2}, 400, "n", "temperature"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream"),
        ({"top_logprobs": 2}, 400, "top_logprobs", "logprobs"),
        ({"return_tokens": True}, 400, "return_tokens", "stream"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
        ({"temprature": 1}, 400, "temprature", "did you mean temperature"),
        ({"method": "magic"}, 400, None, "magic"),
        ({"mm_processor_kwargs": {"max_pixel": 3}}, 400, None, "did you mean max_pixels"),
        ({"stop": ["a", ""]}, 400, None, "empty"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_by_name(url, change, status, param, words, stream):
    if stream and words == "stream":
        pytest.skip("only wrong without a stream")
    body = {"model": "tiny", "messages": asked(), "max_tokens": 2, "stream": stream} | change
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, status, param), error
    assert words in error["message"] and "\n" not in error["message"] and "Traceback" not in error["message"]


def test_what_asks_for_nothing_is_taken(client):
    neutral = dict(
        frequency_penalty=0, presence_penalty=0.0, logit_bias={}, user="me", response_format={"type": "text"}
    )
    assert ask(client, max_tokens=2, **neutral).usage.completion_tokens == 2


def test_a_hundred_clients_that_leave_leave_nothing_behind(llm, expected):
    """Some in mid-answer, some while they wait. The server goes on, and holds nothing of them."""
    service = Service(llm, "tiny", MediaPolicy(), max_waiting=100)

    async def visit(client, place):
        messages = asked() if place % 20 == 0 else [{"role": "user", "content": "What happens?"}]
        body = {"messages": messages, "stream": True, "max_tokens": 400, "temperature": 4, "seed": place}
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if '"content":"' in line and '"content":""' not in line:
                        return True
        except httpx2.TimeoutException:
            return False

    async def visits(url):
        limits = httpx2.Limits(max_connections=200)
        async with (
            httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as patient,
            httpx2.AsyncClient(base_url=url, timeout=0.3, limits=limits) as hasty,
        ):
            return await asyncio.gather(*(visit(hasty if place % 4 == 3 else patient, place) for place in range(100)))

    with closing(service), serving(service) as url:
        answered = asyncio.run(visits(url))
        assert sum(map(bool, answered)) >= 75
        deadline = time.monotonic() + 60
        while (service.live or llm.engine.scheduler.jobs) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not service.live and not llm.engine.scheduler.jobs
        gc.collect()
        assert not [one for one in gc.get_objects() if type(one) in (Sequence, Job)]
        metrics = httpx2.get(f"{url}/metrics").text
        assert 'hippo:num_requests_running{model_name="tiny"} 0.0' in metrics
        answer = httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked()}, timeout=60).json()
        assert answer["choices"][0]["message"]["content"] == expected.text


def test_a_client_that_leaves_cancels_its_request(url, llm, service, monkeypatch):
    step = llm.engine.step
    monkeypatch.setattr(llm.engine, "step", lambda: (time.sleep(0.1), step()))  # it does not end before
    body = {"model": "tiny", "messages": asked(), "temperature": 100.0, "seed": 3}
    for stream in (True, False):
        before = service.metrics.registry.get_sample_value(
            "hippo:request_success_total", {"model_name": "tiny", "finished_reason": "abort"}
        )
        with httpx2.Client(timeout=httpx2.Timeout(60, read=60 if stream else 0.5)) as client:
            try:
                with client.stream("POST", f"{url}/v1/chat/completions", json=body | {"stream": stream}) as response:
                    next(response.iter_lines())
            except httpx2.ReadTimeout:
                assert not stream
        for _ in range(1200):
            if not llm.engine.scheduler.jobs and not service.live:
                break
            time.sleep(0.05)
        assert not llm.engine.scheduler.jobs and not service.live
        assert before + 1 == service.metrics.registry.get_sample_value(
            "hippo:request_success_total", {"model_name": "tiny", "finished_reason": "abort"}
        )


def test_a_full_queue_answers_503(llm):
    crowded = Service(llm, "tiny", MediaPolicy(), max_waiting=1 - llm.engine.scheduler.max_running)
    with serving(crowded) as url, httpx2.Client(timeout=60) as client:
        body = {"messages": asked(), "max_tokens": 1}
        with crowded.admitted(1):
            full = client.post(f"{url}/v1/chat/completions", json=body)
            assert full.status_code == 503 and int(full.headers["retry-after"]) > 0
        assert client.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        never = client.post(f"{url}/v1/chat/completions", json=body | {"n": 2, "temperature": 1})
        assert never.status_code == 400 and never.json()["error"]["param"] == "n"


def test_a_draft_killed_under_load_changes_no_word(client, llm, expected):
    assert ask(client, max_tokens=2).usage.completion_tokens == 2  # it runs
    texts = [""] * 3

    def read(place):
        texts[place] = "".join(pieces(ask(client, stream=True)))

    threads = [threading.Thread(target=read, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    os.kill(llm.pair.draft.worker().pid, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert texts == [expected.text] * 3
    assert ask(client).choices[0].message.content == expected.text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(sorted({*ChatBody.model_fields, "tools", "user"} - {"stream", "return_tokens"}))


@settings(max_examples=int(os.environ.get("HIPPO_FUZZED", 100)), deadline=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.dictionaries(FIELDS, JSON, max_size=3), st.booleans())
def test_no_body_is_the_servers_fault(url, changes, video):
    part = [{"type": "video_url", "video_url": {"url": URL}}] if video else []
    body = {
        "messages": [{"role": "user", "content": [*part, {"type": "text", "text": "x"}]}],
        "max_tokens": 1,
    } | changes
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code in (200, 400, 404), (body, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


def test_openais_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError, match="may not be read"):
        ask(client, asked("file:///etc/passwd"))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=asked())
