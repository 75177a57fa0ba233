"""What clients of an OpenAI-compatible server wait for: time to first token, between tokens, to the end."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import httpx2

from hippo.bench.world import make_scene, write_clip
from hippo.device import in_passing_thread
from hippo.errors import HippoError
from hippo.llm import VideoLLM

QUESTION = "Describe the video in detail."
_SECOND, _FEW = "Which objects are in the video?", 8  # asked about a clip that was answered; tokens of the answer
SEED = 71000  # of scenes that no model was trained on
_PATIENCE = 600.0  # seconds for one answer


class Answered(NamedTuple):
    """One answer. first, last: seconds from the request to its first and last token. tokens: as the server counts."""

    text: str
    tokens: int
    first: float
    last: float


class Ask(Protocol):
    """Asks about a clip, for so many tokens at most."""

    def __call__(self, clip: Path, tokens: int, question: str = QUESTION) -> Answered: ...


@contextmanager
def server(url: str, model: str | None, key: str) -> Iterator[Ask]:
    """Asks a server. Raises HippoError, also where it does not answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx2.Client(base_url=url.rstrip("/"), headers=headers, timeout=_PATIENCE, trust_env=False) as client:
        try:
            name = model or client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        except (httpx2.HTTPError, ValueError, KeyError, IndexError) as error:
            raise HippoError(f"{url} does not answer ({type(error).__name__})", "start the server first") from None
        yield _asking(client, url, name)


def _asking(client: httpx2.Client, url: str, name: str) -> Ask:
    def ask(clip: Path, tokens: int, question: str = QUESTION) -> Answered:
        data = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
        content = [{"type": "video_url", "video_url": {"url": data}}, {"type": "text", "text": question}]
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

    def ask(clip: Path, tokens: int, question: str = QUESTION) -> Answered:
        began, text, first = time.perf_counter(), "", 0.0
        stream = llm.stream(clip, question, max_new_tokens=tokens)
        for piece in stream:
            text, first = text + piece, first or time.perf_counter() - began
        return Answered(text, len(stream.output.token_ids), first, time.perf_counter() - began)

    return ask


@contextmanager
def own_server(max_running: int, *options: str) -> Iterator[tuple[str, int]]:
    """`hippo serve` with the bundled pair and more options, in a process of its own as clients have it. Yields its URL
    and its process. Raises HippoError."""
    options = ("--port", "0", "--disable-page", "--max-running", str(max_running), *options)
    command = [sys.executable, "-m", "hippo", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if (found := re.search(r"http://[\d.]+:\d+", process.stdout.readline())) is None:
                raise HippoError("hippo serve does not start", "run it by hand to see why")
            yield found[0], process.pid
        finally:
            process.terminate()


def write_clips(folder: Path, count: int, seed: int) -> list[Path]:
    """Clips of different scenes."""
    clips = [folder / f"{seed + place}.mp4" for place in range(count)]
    for place, clip in enumerate(clips):
        write_clip(make_scene(seed + place), clip)
    return clips


def study(
    subjects: dict[str, Ask],
    concurrency: Sequence[int],
    requests: int,
    tokens: int,
    progress: Callable[[str, float], None],
) -> list[dict[str, Any]]:
    """Rows, one for each concurrency and subject. All subjects are asked about the same clips, each about one after the
    other; a clip is new to each. Then each clip has a second question, alone."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for at_once in concurrency:
            clips = write_clips(Path(folder), requests + 1, SEED + 1000 * at_once)
            seen: dict[str, list[Answered]] = {name: [] for name in subjects}
            again: dict[str, list[Answered]] = {name: [] for name in subjects}
            spent = dict.fromkeys(subjects, 0.0)
            for ask in subjects.values():
                in_passing_thread(partial(ask, clips[-1], tokens))  # warms up, without OpenMP threads left here
            for begin in range(0, requests, at_once):
                for name, ask in subjects.items():
                    progress(f"{name}, {at_once} at once", begin / requests)
                    began = time.perf_counter()
                    with ThreadPoolExecutor(at_once) as pool:
                        some = clips[begin : min(begin + at_once, requests)]
                        seen[name] += pool.map(partial(ask, tokens=tokens), some)
                    spent[name] += time.perf_counter() - began
                    with ThreadPoolExecutor(1) as pool:
                        again[name] += pool.map(partial(ask, tokens=_FEW, question=_SECOND), some)
            reference = next(iter(seen))
            for name, answers in seen.items():
                rows.append(_row(name, at_once, answers, spent[name], seen[reference], spent[reference]))
                seconds = [(one.first, other.first) for one, other in zip(again[name], again[reference], strict=True)]
                rows[-1]["second_question_first_seconds"] = _middle([one for one, _ in seconds])
                rows[-1]["second_question_over_first"] = median(one / other for one, other in seconds)
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
