"""Videos and images are decoded in other processes: what the server answers, and when one of them is lost."""

import base64
import os
import signal
import threading
import time
from contextlib import closing
from io import BytesIO

import av
import httpx2
import numpy as np
import pytest
from PIL import Image

from hippo.cli.demo import CLIP
from hippo.serve.media import MediaPolicy
from hippo.serve.service import Service
from tests.serve.conftest import URL, asked, serving

PICTURES = [
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (60, 80, 3), np.uint8).repeat(2, 0)) for n in range(5)
]


def encoded(kind, **options):
    """A data: URL of pictures."""
    if kind == "video/jpeg":
        return f"data:{kind};base64," + ",".join(encoded("image/jpeg", only=n).partition(",")[2] for n in range(5))
    file, (first, *rest) = BytesIO(), PICTURES[options.pop("only", 0) :]
    moving = {"save_all": True, "append_images": rest, "duration": 200} if kind.startswith("video") else {}
    first.save(file, kind.partition("/")[2], **moving)
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.fixture
def forgetful(llm, monkeypatch):
    """What was read before is read again."""
    monkeypatch.setattr(llm.reader, "_memory", None)


def ask(url, messages, **fields):
    body = {"messages": messages, "max_tokens": 12} | fields
    return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "kind", ["video/mp4", "file", "video/gif", "video/webp", "video/png", "image/png", "video/jpeg"]
)
def test_nothing_is_decoded_in_the_server(llm, url, forgetful, monkeypatch, kind):
    source = {"video/mp4": URL, "file": CLIP.as_uri()}.get(kind) or encoded(kind)
    name = "image_url" if kind.startswith("image") else "video_url"
    content = [{"type": name, name: {"url": source}}, {"type": "text", "text": "What happens?"}]
    expected = llm.generate(messages=[{"role": "user", "content": content}], max_new_tokens=12).text

    def refuse(*_, **__):
        raise AssertionError("the server opens a file itself")

    monkeypatch.setattr(av, "open", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    assert text_of(ask(url, [{"role": "user", "content": content}])) == expected


def test_a_file_that_needs_too_much_memory_is_refused(llm, forgetful):
    file = BytesIO()
    Image.new("L", (4000, 4000)).save(file, "gif", save_all=True, append_images=[Image.new("L", (4000, 4000), 9)])
    bomb = f"data:video/gif;base64,{base64.b64encode(file.getvalue()).decode()}"
    service = Service(llm, "tiny", MediaPolicy(memory=120 << 20))
    with closing(service), serving(service) as url:
        answer = ask(url, asked(bomb))
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == (
            "the data: URL needs more than 120 MiB to be decoded: scale it first, or ask for fewer frames"
        )
        assert text_of(ask(url, asked()))


def test_a_request_takes_no_more_video_tokens_than_the_server_allows(llm, forgetful):
    service = Service(llm, "tiny", MediaPolicy(tokens=128))
    with closing(service), serving(service) as url:
        answer = ask(url, asked(), max_tokens=1)
        assert 0 < answer.json()["usage"]["prompt_tokens_details"]["video_tokens"] <= 128
        answer = ask(url, asked(resized_height=10**9, resized_width=10**9), max_tokens=1)
        assert answer.status_code == 400 and "128" in answer.json()["error"]["message"]


def test_a_decoder_that_is_killed_under_load_fails_its_request_alone(llm, forgetful):
    service, questions = Service(llm, "tiny", MediaPolicy()), ["What happens?", "Who is there?", "What moves?"]
    with closing(service), serving(service) as url:
        expected = [text_of(ask(url, asked(question=one), max_tokens=24)) for one in questions]
        (spare,) = service.workers._idle
        pid = spare._child.pid
        os.kill(pid, signal.SIGSTOP)
        answers = {}

        def run(place, question):
            answers[place] = ask(url, asked(question=question), max_tokens=24)

        victim = threading.Thread(target=run, args=("victim", "Why?"))
        victim.start()
        while service.workers._idle:
            time.sleep(0.005)
        others = [threading.Thread(target=run, args=each) for each in enumerate(questions)]
        for thread in others:
            thread.start()
        while service.live < 4:
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        for thread in (victim, *others):
            thread.join()
        assert answers["victim"].status_code == 400
        assert answers["victim"].json()["error"]["message"] == (
            "the data: URL ends the process that decodes it (SIGKILL): convert it to H.264 first"
        )
        assert [text_of(answers[place]) for place in range(3)] == expected
