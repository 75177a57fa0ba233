"""Routes beside the answers; keys, bodies, and the command itself."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from openai import AuthenticationError, OpenAI

import hippo
from hippo.cli.demo import CLIP
from hippo.serve.media import MediaPolicy
from hippo.serve.service import Service
from tests.serve.conftest import asked, serving

ROOT = Path(hippo.__file__).parents[1]


def test_what_a_client_may_look_up(url):
    model = httpx2.get(f"{url}/v1/models").json()["data"][0]
    assert model["id"] == "tiny" and model["max_model_len"] > 1000
    assert httpx2.get(f"{url}/version").json() == {"version": hippo.__version__}
    assert [httpx2.get(f"{url}/{path}").status_code for path in ("health", "ping")] == [200, 200]
    words = httpx2.post(f"{url}/tokenize", json={"prompt": "The video shows"}).json()
    assert words["count"] == len(words["tokens"]) == 3
    for method, path, status in (("GET", "nope", 404), ("GET", "v1/chat/completions", 405)):
        answer = httpx2.request(method, f"{url}/{path}")
        assert answer.status_code == answer.json()["error"]["code"] == status


def measured(url):
    """The samples of /metrics, without the label of the model."""
    lines = httpx2.get(f"{url}/metrics").text.replace('model_name="tiny"', "").replace("{}", "").splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_metrics_count_what_was_answered(client, url):
    before = measured(url)
    drafting = {"method": "sd"}  # `hippo` may find on a busy machine that it does not pay
    answer = client.chat.completions.create(model="tiny", messages=asked(), max_tokens=40, extra_body=drafting)
    after = measured(url)
    grown = {name[6:]: after[name] - before.get(name, 0) for name in after if name.startswith("hippo:")}
    assert grown["generation_tokens_total"] == grown["request_generation_tokens_sum"] == 40
    assert grown["prompt_tokens_total"] == grown["request_prompt_tokens_sum"] == answer.usage.prompt_tokens
    assert grown["prefix_cache_hits_total"] == answer.usage.prompt_tokens_details.cached_tokens
    accepted = answer.usage.speculative["accepted"]
    assert grown["spec_decode_num_accepted_tokens_total"] == accepted
    name = "spec_decode_num_accepted_tokens_per_pos_total"
    by_position = [grown.get(f'{name}{{,position="{place}"}}', 0) for place in range(40)]
    assert sum(by_position) == accepted > 0 and by_position == sorted(by_position, reverse=True)
    assert grown['request_success_total{finished_reason="length",}'] == 1
    assert grown["num_requests_running"] == grown["num_requests_waiting"] == 0
    seconds = {name[:-12]: grown[name] for name in grown if name.endswith("_seconds_sum")}
    steps = grown.pop("inter_token_latency_seconds_count")
    assert 0 < steps < 40
    assert all(grown[f"{name}_seconds_count"] == 1 for name in seconds if name != "inter_token_latency")
    parts = ("request_read_time", "request_queue_time", "request_prefill_time", "request_decode_time")
    assert 0 < sum(seconds[part] for part in parts) <= seconds["e2e_request_latency"] + 1e-6
    assert seconds["inter_token_latency"] == pytest.approx(seconds["request_decode_time"])
    assert seconds["request_time_per_output_token"] == pytest.approx(seconds["request_decode_time"] / 39)
    assert seconds["time_to_first_token"] < seconds["e2e_request_latency"]


def test_metrics_count_who_was_turned_away(llm):
    service = Service(llm, "tiny", MediaPolicy())
    service.draining = True
    with serving(service) as url:
        assert httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked()}).status_code == 503
        assert measured(url)["hippo:admission_rejections_total"] == 1


def test_a_key_is_asked_for_where_models_are(locked):
    with OpenAI(base_url=f"{locked}/v1", api_key="wrong", max_retries=0) as client, pytest.raises(AuthenticationError):
        client.chat.completions.create(model="tiny", messages=asked())
    for key in ("sesame", "other"):
        with OpenAI(base_url=f"{locked}/v1", api_key=key) as client:
            assert client.models.list().data[0].id == "tiny"
    assert httpx2.post(f"{locked}/tokenize", json={"prompt": "x"}).status_code == 401
    assert httpx2.get(f"{locked}/health").status_code == 200


def test_no_error_says_what_is_inside_the_server(llm, tmp_path, monkeypatch):
    (tmp_path / "damaged.mp4").write_bytes(CLIP.read_bytes()[:3000])
    service = Service(llm, "tiny", MediaPolicy(tmp_path))
    with closing(service), serving(service, keys=("sesame",)) as url:
        headers = {"Authorization": "Bearer sesame"}
        body = {"messages": asked((tmp_path / "damaged.mp4").as_uri())}
        damaged = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert damaged.status_code == 400 and str(tmp_path) not in damaged.text

        def fail(*_, **__):
            raise RuntimeError("/etc/secret sesame")

        monkeypatch.setattr(service, "require_model", fail)
        failed = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        assert failed.status_code == 500 and failed.json()["error"]["message"].startswith("The server failed")
        refused = httpx2.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": "Bearer mine"})
        assert refused.status_code == 401
        for answer in (failed, refused):
            assert not any(word in answer.text for word in ("secret", "sesame", "mine", "Traceback", ".py"))


def test_bodies_that_are_none(url):
    for content in (b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"messages": "\\ud800"}'):
        answer = httpx2.post(f"{url}/v1/chat/completions", content=content)
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_a_body_that_is_too_large_is_not_read_to_its_end(llm):
    with serving(Service(llm, "tiny", MediaPolicy(max_bytes=1000))) as url:
        answer = httpx2.post(f"{url}/v1/chat/completions", content=b"x" * (3 << 20))
        assert answer.status_code == 413
        answer = httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked()})
        assert answer.status_code == 413 and "0.0009537 MiB" in answer.json()["error"]["message"]


def test_other_sites_may_ask_only_if_they_are_allowed(llm, url):
    headers = {"Origin": "https://a.example"}
    assert "access-control-allow-origin" not in httpx2.get(f"{url}/version", headers=headers).headers
    with serving(Service(llm, "tiny", MediaPolicy()), origins=("https://a.example",)) as open_to_one:
        for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
            answer = httpx2.get(f"{open_to_one}/version", headers={"Origin": origin})
            assert answer.headers.get("access-control-allow-origin") == allowed


def test_the_page_may_be_left_out(llm, url):
    assert "<html" in httpx2.get(url).text
    with serving(Service(llm, "tiny", MediaPolicy()), with_page=False) as bare:
        assert httpx2.get(bare).status_code == 404


@pytest.mark.parametrize("page", ["README.md", "docs/serving.md"])
def test_the_quick_start_runs_as_it_is_written(url, tmp_path, monkeypatch, capsys, page):
    (code,) = re.findall(r"```python\n(import base64\n.*?)```", (ROOT / page).read_text(), re.DOTALL)
    shutil.copy(CLIP, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("http://127.0.0.1:8000", url), {})
    assert len(capsys.readouterr().out) > 20


@pytest.fixture(scope="module")
def command():
    """`hippo serve` in a process of its own: (process, URL)."""
    arguments = [sys.executable, "-m", "hippo", "serve", "--port", "0", "--max-running", "2"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    yield process, line.split(" at ")[1].partition(": ")[0]
    if process.poll() is None:
        process.kill()
        process.wait()


def children(pid):
    """Processes that a process has started, and which of them decode."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found[folder] = b"hippo.video.worker" in (folder / "cmdline").read_bytes()
        except OSError:
            pass
    return found


def test_sigterm_ends_the_command_after_its_answers(command):
    process, url = command
    started = children(process.pid)
    assert sum(started.values()) == 1, "one decoder is ready for the first request"
    with httpx2.Client(timeout=60) as client:
        expected = client.post(f"{url}/v1/chat/completions", json={"messages": asked()}).json()
        body, seen, begun = {"messages": asked(), "stream": True}, [], threading.Event()

        def read():
            with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                for line in response.iter_lines():
                    seen.append(line)
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        begun.wait(30)
        process.send_signal(signal.SIGTERM)
        try:
            answer = httpx2.post(f"{url}/v1/chat/completions", json={"messages": asked()}, timeout=60)
            assert answer.status_code == 503 and "stopping" in answer.json()["error"]["message"]
        except httpx2.TransportError:
            pass  # it was already gone
        reader.join()
        assert process.wait(30) == 0 and process.stderr.read() == ""
        assert not any(folder.exists() for folder in started)
    text = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content", "") for line in seen if line.startswith("data: {")
    )
    assert text == expected["choices"][0]["message"]["content"] and seen[-2] == "data: [DONE]"


def test_the_command_says_what_is_wrong_before_it_loads():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            (("--port", port), "cannot be served at"),
            (("--allowed-local-media-path", "/nowhere"), "/nowhere is no folder"),
            (("--host", "999.1.1.1"), "cannot be served at"),
        ):
            command = [sys.executable, "-m", "hippo", "serve", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
            assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
