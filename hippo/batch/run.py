"""A batch job: its rows as requests of the engine, their answers as lines."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from hippo.batch.answers import Answers
from hippo.batch.rows import PLACES, Row
from hippo.errors import HippoError
from hippo.inputs import MediaOptions
from hippo.llm import VideoLLM
from hippo.params import SamplingParams
from hippo.report.openai import reason_of, usage_of
from hippo.request import DEFAULT_PROMPT, Output, Request, messages_from

Line = dict[str, Any]
WARM_UP = 20  # requests
_WORDS = (  # the parameters that decide the words; the others only decide how fast they come
    *("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop"),
)


@dataclass(frozen=True)
class Defaults:
    """What all requests of a job have in common. model: the target's name. dtype: as `hippo.load` takes it. prompt,
    system: of rows without. The others: see `hippo.Request`."""

    model: str = "tiny"
    dtype: str = "auto"
    prompt: str = DEFAULT_PROMPT
    system: str = ""
    params: SamplingParams = field(default_factory=SamplingParams)
    frames: int | None = None
    fps: float | None = None
    max_video_tokens: int | None = None
    media: MediaOptions = field(default_factory=MediaOptions)

    def digest(self, row: Row) -> str:
        """Equal for requests that are answered with the same words."""
        words = {name: getattr(self.params, name) for name in _WORDS}
        others = {name: value for name, value in asdict(self).items() if name != "params"}
        text = json.dumps([row.asked, others, words], default=repr, sort_keys=True)
        return blake2b(text.encode(), digest_size=8).hexdigest()

    def request(self, row: Row) -> Request:
        """Raises HippoError."""
        if row.messages is None:
            prompt = self.prompt if row.prompt is None else row.prompt
            system = self.system if row.system is None else row.system
            messages = messages_from(row.found(row.video), prompt, None, system)
        else:
            messages = _with_paths(row.messages, row)
        return Request(messages, self.params, self.frames, self.fps, self.max_video_tokens, self.media)


@dataclass
class Summary:
    """Of one run of a job. failures: by kind. tokens: generated. checked, accepted: drafted tokens. seconds: of
    answering. ended: seconds after which each request ended. stopped: there were too many failures."""

    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    checked: int = 0
    accepted: int = 0
    seconds: float = 0.0
    ended: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def steady_rate(self) -> float | None:
        """Requests a second after the first `WARM_UP`, which wait for what starts; None for a short job."""
        if len(self.ended) < 3 * WARM_UP:
            return None
        return (len(self.ended) - WARM_UP) / max(self.ended[-1] - self.ended[WARM_UP - 1], 1e-9)

    def add(self, line: Line) -> None:
        """Count a request that has ended."""
        if line["error"] is not None:
            self.failures[line["error"]["code"]] += 1
            return
        usage = line["response"]["body"]["usage"]
        self.answered += 1
        self.tokens += usage["completion_tokens"]
        self.checked += usage["speculative"]["drafted"]
        self.accepted += usage["speculative"]["accepted"]


def answer_all(
    lines: Generator[Line],
    answers: Answers,
    max_failures: int | None = None,
    on_done: Callable[[Line], None] = lambda line: None,
) -> Summary:
    """Write lines as they come, and close where they come from.

    lines: of `answered`, or of what answers elsewhere. max_failures: stop at the next one. on_done: called after each
    line. Raises HippoError if the file cannot be written.
    """
    summary, began = Summary(), time.perf_counter()
    with closing(lines):
        for line in lines:
            answers.append(line)
            summary.add(line)
            summary.seconds = time.perf_counter() - began
            summary.ended.append(summary.seconds)
            summary.stopped = max_failures is not None and summary.failures.total() > max_failures
            on_done(line)
            if summary.stopped:
                break
    return summary


def answered(llm: VideoLLM, rows: Iterable[Row], defaults: Defaults) -> Generator[Line]:
    """The line of each row as it ends, several answered at a time."""
    asked, refused = dict[int, Row](), deque[Line]()

    def requests() -> Iterator[Request]:
        for row in rows:
            try:
                request = defaults.request(row)
            except HippoError as error:
                refused.append(line_of(row, error, defaults))
                continue
            asked[len(asked)] = row
            yield request

    with closing(llm.as_completed(requests())) as coming:
        for index, answer in coming:
            while refused:
                yield refused.popleft()
            yield line_of(asked[index], answer, defaults)
    yield from refused


def by_subject(rows: Iterable[Row]) -> list[Row]:
    """Requests on one video follow each other, so that it is read once."""
    listed = list(rows)
    first: dict[str, int] = {}
    for row in listed:
        first.setdefault(row.subject, len(first))
    return sorted(listed, key=lambda row: first[row.subject])


def _with_paths(messages: list[Any], row: Row) -> list[Any]:
    """Messages in which a path beside the row's file is whole."""

    def part(one: Any) -> Any:
        if not isinstance(one, dict):
            return one
        return one | {name: row.found(one[name]) for name in PLACES if name in one}

    def turn(one: Any) -> Any:
        content = one.get("content") if isinstance(one, dict) else None
        return one | {"content": list(map(part, content))} if isinstance(content, list) else one

    return list(map(turn, messages))


def line_of(row: Row, answer: Output | Exception, defaults: Defaults) -> Line:
    """The line of a request that has ended, in the fields of OpenAI's batch API, with the row's own columns."""
    line: dict[str, Any] = {"custom_id": row.custom_id}
    line |= {name: value for name, value in row.asked.items() if name in ("video", "prompt", "system")}
    line |= row.columns
    response = error = None
    if isinstance(answer, Output):
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text},
            "finish_reason": reason_of(answer),
        }
        body = {
            "object": "chat.completion",
            "model": defaults.model,
            "choices": [choice],
            "usage": usage_of([answer]),
            "warnings": list(answer.warnings),
        }
        response = {"status_code": 200, "body": body}
    else:
        error = {"code": type(answer).__name__, "message": str(answer)}
    return line | {"response": response, "error": error, "digest": defaults.digest(row)}
