"""/v1/chat/completions: OpenAI's fields, vLLM's and SGLang's for video, and ours."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import ExitStack, aclosing
from typing import Any
from uuid import uuid4

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from hippo.errors import BadRequest
from hippo.report.openai import reason_of, usage_of
from hippo.request import Output
from hippo.serve.errors import ApiError
from hippo.serve.page import Account
from hippo.serve.schema import ChatBody, CompletionBody, StreamOptions, exclusive, parsed
from hippo.serve.service import Answers, Service, unless_gone
from hippo.trace import TokenInfo

DONE = "data: [DONE]\n\n"


async def chat_completions(service: Service, request: HttpRequest, given: Any) -> Response:
    """Answer a conversation. Raises ApiError and HippoError."""
    body: ChatBody = parsed(ChatBody, given)
    service.require_model(body.model)
    require_consistent(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs need logprobs: true", "top_logprobs")
    if body.return_tokens and not (body.stream and body.n == 1):
        raise ApiError(400, "return_tokens needs stream: true and n: 1", "return_tokens")
    account = Account(service.llm.processor.tokenizer) if body.return_tokens else None
    with ExitStack() as unless_streamed:
        completion = _Completion(service, body, account)
        unless_streamed.enter_context(service.admitted(body.n))
        submitting = service.submit(
            body,
            body.messages,
            body.n,
            None if account is None else account.on_read,
            max_new_tokens=exclusive(body.max_tokens, body.max_completion_tokens),
            stop=body.stop,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        return await respond(request, completion, submitting, body.stream, unless_streamed)


def require_consistent(body: ChatBody | CompletionBody) -> None:
    """Raises ApiError for fields that contradict each other."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options need stream: true", "stream_options")
    if body.n > 1 and not body.temperature:
        raise ApiError(400, "n above 1 needs a temperature: greedy answers are all the same", "n")


async def respond(
    request: HttpRequest, completion: Any, submitting: Awaitable[Answers], stream: bool, held: ExitStack
) -> Response:
    """The answers to a request, whole or as a stream. completion: has `whole` and `chunks`. held: closed at the end of
    a stream. Raises ApiError and HippoError."""
    if not stream:
        return JSONResponse(await unless_gone(request, completion.whole(submitting)))
    # The first piece decides about the status, so that what is wrong with a request is no part of a stream.
    chunks = completion.chunks(await unless_gone(request, submitting))
    first = await unless_gone(request, anext(chunks))
    streamed = _lines(first, chunks, held.pop_all())
    return StreamingResponse(streamed, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _lines(first: str, chunks: AsyncGenerator[str], held: ExitStack) -> AsyncIterator[str]:
    """Server-sent events. held: closed at the end, whoever ends it."""
    with held:
        async with aclosing(chunks):
            try:
                yield first
                async for chunk in chunks:
                    yield chunk
            except ApiError as error:
                yield event(error.body)
                yield DONE


class _Completion:
    """One HTTP request's answers, as JSON or as chunks."""

    def __init__(self, service: Service, body: ChatBody, account: Account | None) -> None:
        self._service, self._body, self._account = service, body, account
        self._tokenizer = service.llm.processor.tokenizer
        self._cuts = cuts_of(body)
        self._shown = [0] * body.n  # tokens whose log probabilities were given
        self._head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": service.model}

    async def whole(self, submitting: Any) -> dict[str, Any]:
        """The answer as one object."""
        answers = await submitting
        texts = await gathered(answers, self._cuts)
        outputs = [stream.output for stream in answers.streams]
        choices = [
            {
                "index": place,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": self._logprobs(place, output),
                "finish_reason": reason_of(output),
                "stop_reason": self._cuts[place].found,
            }
            for place, (text, output) in enumerate(zip(texts, outputs, strict=True))
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": usage_of(outputs)}

    async def chunks(self, answers: Answers) -> AsyncGenerator[str]:
        """The lines of a stream."""
        options = self._body.stream_options or StreamOptions()
        opened = False
        async with aclosing(answers.pieces()) as pieces:
            async for place, piece in pieces:
                if not opened:
                    opened = True
                    for one in range(self._body.n):
                        yield self._chunk(one, {"role": "assistant", "content": ""}, answers, options)
                output = answers.streams[place].output
                text, ended = self._cuts[place].push(piece), piece is None
                if text:
                    yield self._chunk(place, {"content": text}, answers, options, output)
                if ended:
                    if self._account is not None:
                        await asyncio.to_thread(self._account.draw, answers.streams[place])
                    yield self._chunk(place, {"content": ""} if not text else {}, answers, options, output, ended=True)
            if options.include_usage:
                yield event(self._head | {"object": "chat.completion.chunk", "choices": [], "usage": answers.usage})
            yield DONE

    def _chunk(
        self,
        place: int,
        delta: dict[str, Any],
        answers: Answers,
        options: StreamOptions,
        output: Output | None = None,
        ended: bool = False,
    ) -> str:
        choice: dict[str, Any] = {
            "index": place,
            "delta": delta,
            "logprobs": None if output is None else self._logprobs(place, output),
            "finish_reason": reason_of(output) if ended and output is not None else None,
        }
        if ended:
            choice["stop_reason"] = self._cuts[place].found
        if self._account is not None and output is not None:
            stream = answers.streams[place]
            choice["hippo"] = self._account.last(stream) if ended else self._account.more(stream)
        chunk = self._head | {"object": "chat.completion.chunk", "choices": [choice]}
        return event(chunk | ({"usage": answers.usage} if options.continuous_usage_stats else {}))

    def _logprobs(self, place: int, output: Output) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        begin, self._shown[place] = self._shown[place], len(output.tokens)
        return {"content": [self._logprob(token) for token in output.tokens[begin:]]}

    def _logprob(self, token: TokenInfo) -> dict[str, Any]:
        top = [self._token(id) | {"logprob": logprob} for id, logprob in token.top]
        return self._token(token.id) | {"logprob": token.logprob, "top_logprobs": top}

    def _token(self, id: int) -> dict[str, Any]:
        text = self._tokenizer.decode([id])
        return {"token": text, "bytes": list(text.encode())}


class StopCut:
    """The text before the first stop string, which OpenAI's clients do not want to see. found: the one that came."""

    def __init__(self, stops: list[str]) -> None:
        if len(stops) > 16 or "" in stops:
            raise BadRequest("stop holds an empty string or more than 16", "name the strings that end an answer")
        self._stops, self._held = stops, ""
        self.found: str | None = None

    def push(self, piece: str | None) -> str:
        """What may be shown now. piece: more text; None: there is no more."""
        if self.found is not None:
            return ""
        held = self._held + (piece or "")
        hits = [(place, -len(stop), stop) for stop in self._stops if (place := held.find(stop)) >= 0]
        if hits:
            place, _, self.found = min(hits)
            self._held = ""
            return held[:place]
        keep = 0 if piece is None else max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """How long an end of the text is that may become a stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def cuts_of(body: ChatBody | CompletionBody) -> list[StopCut]:
    """One for each answer."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return [StopCut(stops) for _ in range(body.n)]


async def gathered(answers: Answers, cuts: list[StopCut]) -> list[str]:
    """The whole texts of answers."""
    texts = [""] * len(cuts)
    async with aclosing(answers.pieces()) as pieces:
        async for place, piece in pieces:
            texts[place] += cuts[place].push(piece)
    return texts


def event(value: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"
