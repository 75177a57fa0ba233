"""/v1/responses: OpenAI's newer form, with `input_text`, `input_image` and `input_video` parts."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, aclosing
from typing import Any
from uuid import uuid4

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from hippo.report.openai import reason_of, usage_of
from hippo.serve.errors import ApiError
from hippo.serve.schema import ResponsesBody, parsed
from hippo.serve.service import Answers, Service, unless_gone

_PARTS = {
    "input_text": ("text", "text"),
    "output_text": ("text", "text"),
    "input_image": ("image_url", "image_url"),
    "input_video": ("video_url", "video_url"),
}


async def responses(service: Service, request: HttpRequest, given: Any) -> Response:
    """Answer an input. Raises ApiError and HippoError."""
    body: ResponsesBody = parsed(ResponsesBody, given)
    service.require_model(body.model)
    if body.top_logprobs:
        raise ApiError(400, "top_logprobs are not supported here: use /v1/chat/completions", "top_logprobs")
    messages = messages_of(body)
    with ExitStack() as unless_streamed:
        unless_streamed.enter_context(service.admitted(1))
        submitting = service.submit(body, messages, max_new_tokens=body.max_output_tokens)
        response = _Response(service, body)
        if not body.stream:
            return JSONResponse(await unless_gone(request, response.whole(submitting)))
        answers = await unless_gone(request, submitting)
        lines = response.lines(answers, unless_streamed.pop_all())
    return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def messages_of(body: ResponsesBody) -> list[dict[str, Any]]:
    """The conversation as /v1/chat/completions has it. Raises ApiError."""
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    turns: list[dict[str, Any]] = [{"role": "system", "content": body.instructions}] if body.instructions else []
    for place, item in enumerate(items):
        if item.get("type", "message") != "message":
            raise ApiError(400, f"input[{place}] is a {item['type']!r}: only messages are supported", "input")
        role, content = item.get("role"), item.get("content")
        if isinstance(content, list):
            content = [_part(part, f"input[{place}]") for part in content]
        turns.append({"role": "system" if role == "developer" else role, "content": content})
    return turns


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _PARTS:
        raise ApiError(400, f"{where} has a part of type {kind!r}: use one of {', '.join(_PARTS)}", "input")
    name, field = _PARTS[kind]
    others = {
        key: value for key, value in part.items() if key not in ("type", field, "annotations", "detail", "logprobs")
    }
    return {"type": name, name: part.get(field)} | others


class _Response:
    """One response, as JSON or as events."""

    def __init__(self, service: Service, body: ResponsesBody) -> None:
        self._body = body
        self._head = {
            "id": f"resp_{uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": service.model,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "error": None,
            "metadata": {},
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
        }
        self._message = f"msg_{uuid4().hex}"

    async def whole(self, submitting: Any) -> dict[str, Any]:
        """The response as one object."""
        answers = await submitting
        async with aclosing(answers.pieces()) as pieces:
            text = "".join([piece async for _, piece in pieces if piece])
        return self._done(answers, text)

    async def lines(self, answers: Answers, held: ExitStack) -> AsyncIterator[str]:
        """Server-sent events. held: closed at the end."""
        text, number = "", 0
        place = {"item_id": self._message, "output_index": 0, "content_index": 0}

        def event(kind: str, **fields: Any) -> str:
            nonlocal number
            number += 1
            value = {"type": kind, "sequence_number": number - 1} | fields
            return f"event: {kind}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"

        with held:
            async with aclosing(answers.pieces()) as pieces:
                try:
                    begun = self._head | {"status": "in_progress", "output": [], "usage": None}
                    yield event("response.created", response=begun)
                    yield event("response.in_progress", response=begun)
                    yield event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
                    yield event("response.content_part.added", **place, part=_text(""))
                    async for _, piece in pieces:
                        if piece:
                            text += piece
                            yield event("response.output_text.delta", **place, delta=piece, logprobs=[])
                    yield event("response.output_text.done", **place, text=text, logprobs=[])
                    yield event("response.content_part.done", **place, part=_text(text))
                    done = self._done(answers, text)
                    yield event("response.output_item.done", output_index=0, item=done["output"][0])
                    yield event(f"response.{done['status']}", response=done)
                except ApiError as error:
                    reason = {
                        "code": "server_error" if error.status >= 500 else "invalid_prompt",
                        "message": error.message,
                    }
                    failed = self._head | {"status": "failed", "output": [], "usage": None, "error": reason}
                    yield event("response.failed", response=failed)

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "message", "id": self._message, "role": "assistant", "status": status, "content": content}

    def _done(self, answers: Answers, text: str) -> dict[str, Any]:
        output = answers.streams[0].output
        complete = reason_of(output) == "stop"
        status, usage = "completed" if complete else "incomplete", usage_of([output])
        return self._head | {
            "status": status,
            "incomplete_details": None if complete else {"reason": "max_output_tokens"},
            "output": [self._item(status, [_text(text)])],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
                "speculative": usage["speculative"],
            },
        }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
