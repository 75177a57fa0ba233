"""What the engine brings: a second question on a video, several requests together, a batch job."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from hippo.batch import Answers, Defaults, Row, answer_all, answered
from hippo.bench.world import make_scene, write_clip
from hippo.engine import State
from hippo.inputs import messages_of
from hippo.llm import VideoLLM
from hippo.params import SamplingParams
from hippo.request import Request

QUESTIONS = (
    "What happens?",
    "Describe the video in detail.",
    "How many objects are there?",
    "What moves first?",
    "Where is the red circle at the end?",
    "What is at the top?",
    "What changes its colour?",
    "What is on the left at the end?",
    "Which object stays still?",
    "What appears?",
)
_FIRST_SEED = 61000
Progress = Callable[[str, float], None]


@contextmanager
def clips(count: int, context: int) -> Iterator[list[Path]]:
    """Different clips of the world with `context` video tokens each, as the bundled pair samples them."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.mp4" for number in range(count)]
        for number, path in enumerate(paths):
            write_clip(make_scene(_FIRST_SEED + number), path, side=28 * math.ceil(math.sqrt(context / 8)))
        time.sleep(0.1)  # a file that was just written is not remembered
        yield paths


def chat_study(
    llm: VideoLLM, alone: VideoLLM, context: int, runs: int, tokens: int, progress: Progress
) -> dict[str, Any]:
    """Seconds to the first token of a clip's first and second question, and of ten questions with and without what is
    kept. alone: the same pair, which keeps nothing. Each run has a clip of its own."""
    first, second, together, apart, same = [], [], [], [], True
    with clips(runs + 1, context) as paths:
        for number, path in enumerate(paths):  # the first warms up
            progress(f"{context} video tokens, run {number} of {runs}", number / (runs + 1))
            began = time.perf_counter()
            kept = [llm.generate(path, question, max_new_tokens=tokens) for question in QUESTIONS]
            middle = time.perf_counter()
            plain = [alone.generate(path, question, max_new_tokens=tokens) for question in QUESTIONS]
            ended = time.perf_counter()
            same &= [one.token_ids for one in kept] == [one.token_ids for one in plain]
            if number:
                waits = [output.stats.seconds.total - output.stats.seconds.decode for output in kept]
                first.append(waits[0])
                second.append(waits[1])
                together.append(middle - began)
                apart.append(ended - middle)
        video_tokens = kept[0].stats.video_tokens
    shares = [later / earlier for earlier, later in zip(first, second, strict=True)]
    gains = [long / short for long, short in zip(apart, together, strict=True)]
    return {
        "video_tokens": video_tokens,
        "first_seconds": first,
        "second_seconds": second,
        "second_over_first": shares,
        "gain_of_ten": gains,
        "identical": same,
    }


def throughput_study(
    llm: VideoLLM,
    concurrencies: Sequence[int],
    methods: Sequence[str],
    context: int,
    tokens: int,
    runs: int,
    progress: Progress,
    prompts: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Rows: tokens a second, and latencies, of clips of which so many are under way at any time. llm: keeps nothing.
    Each clip is asked about once in a run; in each run the methods take turns. A method is DECODER, a name of
    `SamplingParams`, or "groups": in turns, in two groups. DECODER names have one group, other names choose. prompts:
    to be asked without a video, in place of clips."""
    found = {(method, number): _Served() for method in methods for number in concurrencies}
    with clips(0 if prompts else max(*concurrencies, 8), context) as paths:
        questions = [messages_of(None, prompt) for prompt in prompts]
        questions += [messages_of(str(path), QUESTIONS[1]) for path in paths]
        expected: dict[str, list[list[int]]] = {}
        for run in range(runs):
            for place, (number, method) in enumerate(product(concurrencies, methods)):
                progress(f"run {run + 1}: {method}, {number} at once", (run + place / len(found)) / runs)
                params = SamplingParams.of(max_new_tokens=tokens, **_named(method))
                asked = [Request(turns, params) for turns in questions]
                llm.engine.together.fixed = {"groups": True, "serial": False, "parallel": False}.get(method)
                if not run:
                    llm.generate_many(asked[:number])  # warms up
                texts = _serve(llm, asked, number, found[method, number])
                found[method, number].same &= texts == expected.setdefault(method, texts)
    llm.engine.together.fixed = None
    first = {number: found[methods[0], number].speeds for number in concurrencies}
    return [
        {"method": method, "concurrency": number, **served.as_dict(first[number])}
        for (method, number), served in found.items()
    ]


@dataclass
class _Served:
    """What was measured of one method. rounds: of decoding, by the way."""

    speeds: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    rounds: Counter[str] = field(default_factory=Counter)
    same: bool = True

    def as_dict(self, others: list[float]) -> dict[str, Any]:
        """others: tokens a second of what it is compared with, in the same runs."""
        return {
            "tokens_per_second": median(self.speeds),
            "over_first": [mine / other for mine, other in zip(self.speeds, others, strict=True)],
            "first_token_median": median(self.firsts),
            "first_token_95th": _95th(self.firsts),
            "latency_median": median(self.totals),
            "latency_95th": _95th(self.totals),
            "rounds": dict(self.rounds),
            "identical": self.same,
        }


def batch_study(
    llm: VideoLLM, count: int, context: int, tokens: int, commands: int, progress: Progress
) -> dict[str, Any]:
    """Seconds for the same clips by `hippo batch`'s loop, by `llm.generate` one after another, in turn for each eighth
    of them, and for a `hippo caption` each, of the first `commands`. llm: keeps nothing."""
    batched, looped, apart, same = list[float](), list[float](), list[float](), True
    defaults = Defaults(params=SamplingParams(max_new_tokens=tokens))
    with clips(count, context) as paths:
        rows = [Row(str(path), str(path)) for path in paths]
        llm.generate(paths[0], max_new_tokens=tokens)  # warms up
        size = max(1, count // 8)
        for begin in range(0, count, size):
            progress(f"{begin} of {count} clips", begin / (count + 2 * commands))
            some, out = rows[begin : begin + size], paths[0].with_name(f"{begin}.jsonl")
            started = time.perf_counter()
            with Answers(out, {row.custom_id: defaults.digest(row) for row in some}) as answers:
                answer_all(answered(llm, some, defaults), answers)
            middle = time.perf_counter()
            texts = {row.custom_id: llm.generate(row.video, max_new_tokens=tokens).text for row in some}
            ended = time.perf_counter()
            batched.append((middle - started) / len(some))
            looped.append((ended - middle) / len(some))
            lines = map(json.loads, out.read_text().splitlines())
            found = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
            same &= found == texts
        for path in paths[:commands]:
            progress("one command for each clip", (count + 2 * len(apart)) / (count + 2 * commands))
            command = [sys.executable, "-m", "hippo", "caption", str(path), "--max-new-tokens", str(tokens)]
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            apart.append(time.perf_counter() - started)
    return {"clips": count, "batch": batched, "loop": looped, "commands": apart, "identical": same}


def _named(method: str) -> dict[str, Any]:
    if method in ("serial", "parallel", "groups"):
        return {"decoder": "serial" if method == "groups" else method}
    return {"method": method}


def _serve(llm: VideoLLM, asked: list[Request], number: int, served: _Served) -> list[list[int]]:
    """The token ids of requests of which `number` are under way."""
    waiting, began, first = list(enumerate(asked)), dict[int, float](), dict[int, float]()
    texts, running, start = dict[int, list[int]](), dict[int, Any](), time.perf_counter()
    while waiting or running:
        while waiting and len(running) < number:
            place, request = waiting.pop(0)
            began[place] = time.perf_counter()
            running[place] = llm.engine.submit(replace(request))
        llm.engine.step()
        now = time.perf_counter()
        for place, stream in list(running.items()):
            if stream.output.token_ids:
                first.setdefault(place, now - began[place])
            if stream.state is State.DONE:
                output = running.pop(place).result()
                texts[place] = output.token_ids
                served.totals.append(now - began[place])
                served.rounds.update(output.stats.rounds)
    served.speeds.append(sum(map(len, texts.values())) / (time.perf_counter() - start))
    served.firsts += first.values()
    return [texts[place] for place in range(len(asked))]


def arrival_study(llm: VideoLLM, others: int, context: int, tokens: int, runs: int) -> dict[str, list[float]]:
    """Seconds to the first token of a request that arrives alone, and while `others` are being decoded."""
    lone, late = [], []
    with clips(others + 1, context) as paths:
        params = SamplingParams(max_new_tokens=tokens)
        asked = [Request(messages_of(str(path), QUESTIONS[1]), params) for path in paths]
        for run in range(runs + 1):
            alone = _first_token(llm, asked[-1])
            streams = [llm.engine.submit(request) for request in asked[:-1]]
            while any(stream.state in (State.WAITING, State.READING, State.PREFILL) for stream in streams):
                llm.engine.step()
            beside = _first_token(llm, asked[-1])
            for stream in streams:
                stream.close()
            if run:  # the first warms up
                lone.append(alone)
                late.append(beside)
    return {"alone": lone, "beside": late}


def _first_token(llm: VideoLLM, request: Request) -> float:
    began = time.perf_counter()
    stream = llm.engine.submit(request)
    next(stream, None)
    seconds = time.perf_counter() - began
    stream.close()
    return seconds


def _95th(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(0.95 * len(values)) - 1)]
