"""Clients that ask a server for minutes: errors, growth of its memory, and its speed beside the library's."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from hippo.bench.clients import QUESTION, SEED, Answered, Ask, write_clips
from hippo.bench.memory import held, with_children
from hippo.errors import HippoError
from hippo.inputs import messages_of
from hippo.llm import VideoLLM
from hippo.params import SamplingParams
from hippo.request import Request

CLIPS = 8
_LIBRARY = 0.1  # of the time, before the clients and again after them
_MINUTE = 60.0
_PAUSE = 0.1  # seconds after an error: a server that is gone refuses at once
_SAMPLES = 200  # of the memory, at most one a second


@dataclass
class _Seen:
    """What clients found. texts: of each clip, all that were answered."""

    answers: list[Answered] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    texts: dict[Path, set[str]] = field(default_factory=dict)
    seconds: float = 0.0


def soak(
    ask: Ask,
    clients: int,
    seconds: float,
    tokens: int,
    memory: Callable[[], int | None],
    llm: VideoLLM | None,
    progress: Callable[[str, float], None],
) -> dict[str, Any]:
    """So many clients at once for so many seconds, about the same few clips again and again. memory: bytes of the
    server now; None: not known. llm: asked before and after, by `generate_many`; None: nothing to compare with."""
    with TemporaryDirectory() as folder:
        clips = write_clips(Path(folder), CLIPS, SEED + 900_000)
        for clip in clips[:clients]:
            ask(clip, tokens)  # warms up
        libraries = [_library(llm, clips, _LIBRARY * seconds, tokens)] if llm is not None else []
        seen, samples = _clients(ask, clips, clients, seconds, tokens, memory, progress)
        libraries += [_library(llm, clips, _LIBRARY * seconds, tokens)] if llm is not None else []
    speed = sum(one.tokens for one in seen.answers) / seen.seconds
    library = _speed(libraries)
    before, after = ends(samples, seconds)
    for one in libraries:
        for clip, texts in one.texts.items():
            seen.texts.setdefault(clip, set()).update(texts)
    return {
        "concurrency": clients,
        "seconds": seen.seconds,
        "answers": len(seen.answers),
        "errors": dict(seen.errors),
        "same_texts": all(len(texts) == 1 for texts in seen.texts.values()),
        "tokens_a_second": speed,
        "library_tokens_a_second": library,
        "speed_over_library": None if library is None else speed / library,
        "memory_first_minute": before,
        "memory_last_minute": after,
        "growth": None if not before or after is None else after / before - 1,
    }


def ends(samples: Sequence[tuple[float, int]], seconds: float) -> tuple[int | None, int | None]:
    """The memory in the first minute and in the last, medians; of shorter runs, in their first and last third.
    samples: (seconds since the beginning, bytes)."""
    width = min(_MINUTE, seconds / 3)
    first = [held for at, held in samples if at <= width]
    last = [held for at, held in samples if at >= seconds - width]
    return (int(median(first)) if first else None), (int(median(last)) if last else None)


def memory_of(pid: int) -> Callable[[], int | None]:
    """Of a process and all that it has started, without the files of libraries, whose share depends on who else has
    them open."""
    kinds = ("Pss_Anon", "Pss_Shmem")
    return lambda: sum(held(one, kinds) for one in with_children(pid)) or None


def memory_at(url: str) -> Callable[[], int | None]:
    """Of a server's own process, as its /metrics says it."""

    def read() -> int | None:
        try:
            lines = httpx2.get(f"{url.rstrip('/')}/metrics", trust_env=False).text.splitlines()
        except httpx2.HTTPError:
            return None
        name = "process_resident_memory_bytes "
        return next((int(float(line[len(name) :])) for line in lines if line.startswith(name)), None)

    return read


def _clients(
    ask: Ask,
    clips: list[Path],
    clients: int,
    seconds: float,
    tokens: int,
    memory: Callable[[], int | None],
    progress: Callable[[str, float], None],
) -> tuple[_Seen, list[tuple[float, int]]]:
    seen, samples, lock, places = _Seen(), list[tuple[float, int]](), threading.Lock(), count()
    began = time.perf_counter()
    if (bytes_now := memory()) is not None:
        samples.append((0.0, bytes_now))

    def client() -> None:
        while time.perf_counter() - began < seconds:
            with lock:
                clip = clips[next(places) % len(clips)]
            try:
                answer = ask(clip, tokens)
            except (HippoError, httpx2.HTTPError) as error:
                with lock:
                    seen.errors[f"{type(error).__name__}: {error}"] += 1
                time.sleep(_PAUSE)
                continue
            with lock:
                seen.answers.append(answer)
                seen.texts.setdefault(clip, set()).add(answer.text)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    step, working = max(1.0, seconds / _SAMPLES), True
    while working:
        for thread in threads:
            thread.join(step / len(threads))
        working = any(thread.is_alive() for thread in threads)
        seen.seconds = time.perf_counter() - began
        if (bytes_now := memory()) is not None:
            samples.append((seen.seconds, bytes_now))
        progress(f"{clients} clients at once", min(1.0, seen.seconds / seconds))
    return seen, samples


def _library(llm: VideoLLM, clips: list[Path], seconds: float, tokens: int) -> _Seen:
    seen, asked, began = _Seen(), list[Path](), time.perf_counter()

    def requests() -> Any:
        for place in count():
            if place and time.perf_counter() - began >= seconds:
                return
            asked.append(clips[place % len(clips)])
            yield Request(messages_of(asked[-1], QUESTION), SamplingParams(max_new_tokens=tokens))

    for clip, output in zip(asked, llm.generate_many(requests()), strict=True):
        if isinstance(output, HippoError):
            raise output
        seen.answers.append(Answered(output.text, len(output.token_ids), 0.0, 0.0))
        seen.texts.setdefault(clip, set()).add(output.text)
    seen.seconds = time.perf_counter() - began
    return seen


def _speed(parts: list[_Seen]) -> float | None:
    if not parts:
        return None
    return sum(one.tokens for part in parts for one in part.answers) / sum(part.seconds for part in parts)
