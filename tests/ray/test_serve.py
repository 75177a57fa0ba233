"""Replicas answer as one server does, and one video stays with one replica."""

import json
import socket

import httpx2
import pytest
from openai import OpenAI

from hippo.cli.demo import CLIP
from tests.serve.conftest import URL, asked

pytest.importorskip("ray", reason="Ray is not installed: pip install 'hippo-video[ray]'")

from hippo.ray.serve import Served, deployed, key_of
from hippo.serve.media import MediaPolicy


def body(*urls, text="What?"):
    parts = [{"type": "video_url", "video_url": {"url": url}} for url in urls]
    return json.dumps({"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]}).encode()


def test_a_key_is_of_the_first_video():
    assert key_of(body("a")) == key_of(body("a", "b", text="Why?")) != key_of(body("b", "a"))
    shorter = json.dumps({"input": [{"content": [{"type": "input_video", "video_url": "a"}]}]}).encode()
    assert key_of(shorter) == key_of(body("a"))
    assert key_of(body()) == key_of(b"{") == key_of(b"") == ""


@pytest.fixture(scope="module")
def url(cluster):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"device": "cpu", "max_running": 4, "start_draft": False}
    served = Served("tiny", None, where, "tiny", MediaPolicy(CLIP.parent), app={"keys": ("secret",)})
    with deployed("local", "127.0.0.1", port, served, (2, 2)):
        yield f"http://127.0.0.1:{port}"


def test_two_replicas_are_one_server(url, tiny):
    client = OpenAI(base_url=f"{url}/v1", api_key="secret")
    expected = tiny.generate(str(CLIP), "What?", max_new_tokens=8, method="ar").text
    how = {"model": "tiny", "max_tokens": 8, "extra_body": {"method": "ar"}}
    cached = []
    for _ in range(3):
        done = client.chat.completions.create(messages=asked(URL, "What?"), **how)
        assert done.choices[0].message.content == expected
        cached.append(done.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0 and min(cached[1:]) > 500, "one replica has answered all of them"
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(messages=asked(URL, "What?"), stream=True, **how)
        if chunk.choices
    ]
    assert "".join(pieces) == expected and len([piece for piece in pieces if piece]) > 1
    assert httpx2.get(f"{url}/health").status_code == 200
    assert httpx2.post(f"{url}/v1/chat/completions", content=b"{}").status_code == 401
