"""/v1/completions: a text is continued as it is, without a chat template. No videos."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any
from uuid import uuid4

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hippo.report.openai import reason_of
from hippo.request import Output
from hippo.serve.chat import DONE, cuts_of, event, gathered, require_consistent, respond
from hippo.serve.errors import ApiError
from hippo.serve.schema import CompletionBody, StreamOptions, parsed
from hippo.serve.service import Answers, Service

_NOT_OF_TEXT = ("top_logprobs", "media_io_kwargs", "mm_processor_kwargs")


async def completions(service: Service, request: HttpRequest, given: Any) -> Response:
    """Continue a text. Raises ApiError and HippoError."""
    body: CompletionBody = parsed(CompletionBody, given)
    service.require_model(body.model)
    for name in _NOT_OF_TEXT:
        if getattr(body, name) is not None:
            raise ApiError(400, f"{name} is not supported here: use /v1/chat/completions", name)
    require_consistent(body)
    (prompt,) = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    with ExitStack() as unless_streamed:
        completion = _Completion(service, body)
        unless_streamed.enter_context(service.admitted(body.n))
        submitting = service.submit(body, [], body.n, prompt=prompt, max_new_tokens=body.max_tokens, stop=body.stop)
        return await respond(request, completion, submitting, body.stream, unless_streamed)


class _Completion:
    """One HTTP request's texts, as JSON or as chunks."""

    def __init__(self, service: Service, body: CompletionBody) -> None:
        self._body = body
        self._cuts = cuts_of(body)
        self._head = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model,
        }

    async def whole(self, submitting: Any) -> dict[str, Any]:
        """The texts as one object."""
        answers = await submitting
        texts = await gathered(answers, self._cuts)
        choices = [self._choice(place, text, answers.streams[place].output) for place, text in enumerate(texts)]
        return self._head | {"choices": choices, "usage": answers.usage}

    async def chunks(self, answers: Answers) -> AsyncGenerator[str]:
        """The lines of a stream."""
        options = self._body.stream_options or StreamOptions()
        async with aclosing(answers.pieces()) as pieces:
            async for place, piece in pieces:
                text = self._cuts[place].push(piece)
                if text or piece is None:
                    ended = answers.streams[place].output if piece is None else None
                    chunk = self._head | {"choices": [self._choice(place, text, ended)]}
                    yield event(chunk | ({"usage": answers.usage} if options.continuous_usage_stats else {}))
        if options.include_usage:
            yield event(self._head | {"choices": [], "usage": answers.usage})
        yield DONE

    def _choice(self, place: int, text: str, ended: Output | None) -> dict[str, Any]:
        return {
            "index": place,
            "text": text,
            "logprobs": None,
            "finish_reason": None if ended is None else reason_of(ended),
            "stop_reason": None if ended is None else self._cuts[place].found,
        }
