"""What clients of an OpenAI-compatible server wait for: time to first token, between tokens, to the end."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx2

from hippo.bench.world import make_scene, write_clip
from hippo.errors import HippoError
from hippo.llm import VideoLLM

QUESTION = "Describe the video in detail."
_SEED = 71000  # of scenes that no model was trained on
_PATIENCE = 600.0  # seconds for one answer

Ask = Callable[[Path, int], "Answered"]


class Answered(NamedTuple):
    """One answer. first, last: seconds from the request to its first and last token. tokens: as the server counts."""

    text: str
    tokens: int
    first: float
    last: float


def server(url: str, model: str | None, key: str) -> Ask:
    """Asks a server. Raises HippoError, also where it does not answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = httpx2.Client(base_url=url.rstrip("/"), headers=headers, timeout=_PATIENCE, trust_env=False)
    try:
        name = model or client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
    except (httpx2.HTTPError, ValueError, KeyError, IndexError) as error:
        raise HippoError(f"{url} does not answer ({type(error).__name__})", "start the server first") from None

    def ask(clip: Path, tokens: int) -> Answered:
        data = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
        content = [{"type": "video_url", "video_url": {"url": data}}, {"type": "text", "text": QUESTION}]
        body = {
            "model": name,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began, text, first, count = time.perf_counter(), "", 0.0, 0
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise HippoError(f"{url} answers {response.status_code}", response.read().decode()[:200])
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise HippoError(f"{url} failed in mid-answer", str(chunk["error"])[:200])
                if chunk.get("usage"):
                    count = chunk["usage"]["completion_tokens"]
                if chunk["choices"] and (piece := chunk["choices"][0]["delta"].get("content")):
                    text, first = text + piece, first or time.perf_counter() - began
        return Answered(text, count, first, time.perf_counter() - began)

    return ask


def library(llm: VideoLLM) -> Ask:
    """Asks the library, without a server."""

    def ask(clip: Path, tokens: int) -> Answered:
        began, text, first = time.perf_counter(), "", 0.0
        stream = llm.stream(clip, QUESTION, max_new_tokens=tokens)
        for piece in stream:
            text, first = text + piece, first or time.perf_counter() - began
        return Answered(text, len(stream.output.token_ids), first, time.perf_counter() - began)

    return ask


@contextmanager
def own_server(llm: VideoLLM) -> Iterator[str]:
    """`hippo serve` on a pair that is loaded, in a thread. Yields its URL."""
    import uvicorn

    from hippo.serve.app import make_app
    from hippo.serve.media import MediaPolicy
    from hippo.serve.service import Service

    app = make_app(Service(llm, "tiny", MediaPolicy()), with_page=False)
    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


def study(
    subjects: dict[str, Ask],
    concurrency: Sequence[int],
    requests: int,
    tokens: int,
    progress: Callable[[str, float], None],
) -> list[dict[str, Any]]:
    """Rows, one for each concurrency and subject. All subjects are asked about the same clips, each about one after the
    other; a clip is new to each."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for at_once in concurrency:
            clips = [Path(folder) / f"{at_once}-{place}.mp4" for place in range(requests + 1)]
            for place, clip in enumerate(clips):
                write_clip(make_scene(_SEED + 1000 * at_once + place), clip)
            seen: dict[str, list[Answered]] = {name: [] for name in subjects}
            spent = dict.fromkeys(subjects, 0.0)
            for ask in subjects.values():
                ask(clips[-1], tokens)  # warms up
            for begin in range(0, requests, at_once):
                for name, ask in subjects.items():
                    progress(f"{name}, {at_once} at once", begin / requests)
                    began = time.perf_counter()
                    with ThreadPoolExecutor(at_once) as pool:
                        some = clips[begin : min(begin + at_once, requests)]
                        seen[name] += pool.map(lambda clip, ask=ask: ask(clip, tokens), some)  # type: ignore[misc]
                    spent[name] += time.perf_counter() - began
            reference = next(iter(seen))
            for name, answers in seen.items():
                rows.append(_row(name, at_once, answers, spent[name], seen[reference], spent[reference]))
    return rows


def _row(
    name: str, at_once: int, answers: list[Answered], spent: float, others: list[Answered], their: float
) -> dict[str, Any]:
    tokens = sum(one.tokens for one in answers)
    pairs = list(zip(answers, others, strict=True))
    return {
        "subject": name,
        "concurrency": at_once,
        "first_seconds": _middle([one.first for one in answers]),
        "between_seconds": _middle([(one.last - one.first) / max(1, one.tokens - 1) for one in answers]),
        "seconds": _middle([one.last for one in answers]),
        "tokens_a_second": tokens / spent,
        "more_seconds": median(one.last - other.last for one, other in pairs),
        "seconds_over_first": median(one.last / other.last for one, other in pairs),
        "throughput_over_first": tokens / spent / (sum(one.tokens for one in others) / their),
        "same_texts": all(one.text == other.text for one, other in pairs),
    }


def _middle(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "p95": quantiles(values, n=20)[-1] if len(values) > 1 else values[0]}
