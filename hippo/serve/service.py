"""What all routes share: the models, the rules, and the requests under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from hippo.engine import State, Stream
from hippo.inputs import MediaOptions, Messages
from hippo.llm import VideoLLM
from hippo.params import SamplingParams
from hippo.report.openai import reason_of, usage_of
from hippo.request import Output, Request
from hippo.serve.errors import ApiError, explained
from hippo.serve.media import MediaPolicy
from hippo.serve.metrics import Metrics
from hippo.serve.schema import Sampling
from hippo.video.process import Workers

Done = TypeVar("Done")
DEFAULT_TOKENS = 1024
_TOKEN = 64  # characters: no prompt that is written by people has tokens that are longer on average


@dataclass
class Service:
    """One server's models and rules. Files are decoded in other processes; close it, and they end.

    Args:
        llm: a loaded pair.
        model: the name it serves under.
        media: which videos and images may be read.
        max_waiting: requests that may wait beside those that run.
    """

    llm: VideoLLM
    model: str
    media: MediaPolicy
    max_waiting: int = 64
    live: int = field(default=0, init=False)
    draining: bool = field(default=False, init=False)
    on_idle: Callable[[], None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.workers = Workers(self.media.memory, self.media.decode_seconds)
        scheduler = self.llm.engine.scheduler
        self.metrics = Metrics(self.model, lambda: len(scheduler.running), lambda: len(scheduler.waiting))

    @property
    def context(self) -> int:
        """Tokens that the model reads and writes at most."""
        return getattr(self.llm.pair.target.config.get_text_config(), "max_position_embeddings", None) or 1 << 20

    def close(self) -> None:
        """End the processes that decode."""
        self.workers.close()

    def require_model(self, name: str | None) -> None:
        """Raises ApiError."""
        if name not in (None, self.model):
            raise ApiError(404, f"the model {name!r} does not exist: this server has {self.model!r}", "model")

    def _require_short(self, messages: list[dict[str, Any]]) -> None:
        """Texts that cannot fit are not tokenized first, which takes a second for each MiB. Raises ApiError."""
        contents = [one.get("content") for one in messages]
        parts = [part for content in contents for part in (content if isinstance(content, list) else [content])]
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
        size = sum(len(text) for text in texts if isinstance(text, str)) + _TOKEN * len(messages)
        if size > _TOKEN * self.context:
            raise ApiError(400, f"the messages are too long for the model's context of {self.context}", "messages")

    @contextmanager
    def admitted(self, count: int) -> Any:
        """Room for so many answers. Raises ApiError where there is none."""
        if self.draining:
            self.metrics.refused()
            raise ApiError(503, "the server is stopping: ask another one")
        room = self.llm.engine.scheduler.max_running + self.max_waiting
        if count > room:
            raise ApiError(400, f"n is {count} and this server takes {room} answers at a time", "n")
        if self.live + count > room:
            self.metrics.refused()
            raise ApiError(503, "too many requests wait already: ask again later")
        self.live += count
        try:
            yield
        finally:
            self.live -= count
            if not self.live and self.on_idle is not None:
                self.on_idle()

    async def submit(
        self,
        body: Sampling,
        messages: list[dict[str, Any]],
        count: int = 1,
        on_read: Callable[[Messages], None] | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Answers:
        """Let the engine answer. prompt: see `Request`. options: of `SamplingParams`, beside those of the body. Raises
        ApiError and HippoError."""
        self._require_short([*messages, {"content": prompt or ""}])
        messages, hidden = await self.media.resolved(messages)
        video = None if body.media_io_kwargs is None else body.media_io_kwargs.video
        keys = {} if video is None else {name: one for name, one in video.model_dump().items() if one is not None}
        media = MediaOptions(**MediaOptions.of(keys | _processor_keys(body.mm_processor_kwargs or {})), fetch=False)
        given = {"max_new_tokens": min(DEFAULT_TOKENS, self.context)} | body.params()
        params = SamplingParams.of(**given | {name: one for name, one in options.items() if one is not None})
        if (longest := params.max_new_tokens) > self.context:
            raise ApiError(400, f"max_tokens is {longest} and the model's context {self.context}", "max_tokens")
        seeds = [params.seed] if count == 1 or params.seed is None else [params.seed + place for place in range(count)]
        request = Request(
            messages,
            params,
            max_video_tokens=self.media.tokens,
            media=media,
            on_read=on_read,
            prompt=prompt,
            decoding=self.workers.decoding,
        )
        requests = [replace(request, params=replace(params, seed=seed)) for seed in (seeds * count)[:count]]
        answers = Answers(self, [self.llm.engine.submit(request) for request in requests], hidden)
        self.llm.engine.start()
        return answers


def _processor_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's `mm_processor_kwargs`: `size` in Qwen's way, and keys of `MediaOptions`."""
    size = given.get("size")
    named = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
    keys = {name: value for name, value in given.items() if name != "size" and value is not None}
    if isinstance(size, Mapping):
        keys |= {named.get(name, f"size.{name}"): value for name, value in size.items()}
    elif size is not None:
        keys["size"] = size
    return keys


class Answers:
    """The answers to one HTTP request, on their way. hidden: paths that errors must not show."""

    def __init__(self, service: Service, streams: list[Stream], hidden: tuple[str, ...]) -> None:
        self._service, self.streams, self._hidden = service, streams, hidden
        self._counted = [False] * len(streams)

    @property
    def usage(self) -> dict[str, Any]:
        """See `usage_of`."""
        return usage_of([stream.output for stream in self.streams])

    async def pieces(self) -> AsyncGenerator[tuple[int, str | None]]:
        """(which answer, a piece of its text, or None at its end) as they come. Cancels what is left when it is closed.
        Raises ApiError."""
        queue: asyncio.Queue[tuple[int, str | Exception | None]] = asyncio.Queue()

        async def pump(place: int, stream: Stream) -> None:
            try:
                async for piece in stream:
                    queue.put_nowait((place, piece))
                queue.put_nowait((place, None))
            except Exception as error:
                queue.put_nowait((place, error))

        tasks = [asyncio.create_task(pump(place, stream)) for place, stream in enumerate(self.streams)]
        left = len(tasks)
        try:
            while left:
                place, piece = await queue.get()
                if isinstance(piece, Exception):
                    self._count(place, "error")
                    raise explained(piece, self._hidden) from piece
                if piece is None:
                    left -= 1
                    self._count(place, reason_of(self.streams[place].output), self.streams[place].output)
                yield place, piece
        finally:
            for task in tasks:
                task.cancel()
            self.cancel()

    def cancel(self) -> None:
        """Stop at the next step what has not ended."""
        for place, stream in enumerate(self.streams):
            if stream.state is not State.DONE:
                stream.cancel()
            self._count(place, "abort", stream.output)

    def _count(self, place: int, reason: str, output: Output | None = None) -> None:
        if not self._counted[place]:
            self._counted[place] = True
            self._service.metrics.ended(reason, output)


async def unless_gone(request: HttpRequest, work: Awaitable[Done]) -> Done:
    """Wait for work; give it up when the client leaves. Raises ApiError."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client has left")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
