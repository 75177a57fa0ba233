"""The routes of `hippo serve`."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hippo import __version__
from hippo.errors import HippoError
from hippo.serve import page
from hippo.serve.chat import chat_completions
from hippo.serve.completions import completions
from hippo.serve.errors import ApiError, explained
from hippo.serve.media import MediaPolicy
from hippo.serve.responses import responses
from hippo.serve.schema import TokenizeBody, parsed
from hippo.serve.service import Service

Handler = Callable[[Service, Request, Any], Awaitable[Response]]
_SLACK = 1 << 20  # bytes of a body beside the media in it


def make_app(
    service: Service, keys: tuple[str, ...] = (), origins: tuple[str, ...] = (), with_page: bool = True
) -> Any:
    """The ASGI application. keys: one of them is asked for under /v1/ and at /tokenize; empty: none is. origins: of
    other sites whose pages may ask. with_page: whether there is a page at /."""

    def posted(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            _require_key(request, keys)
            return await handler(service, request, await _json(request, service))

        return answer

    def read(value: Callable[[Service], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if request.url.path.startswith("/v1/"):
                _require_key(request, keys)
            return JSONResponse(value(service))

        return answer

    async def health(_: Request) -> Response:
        return Response(status_code=503 if service.draining else 200)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    began = int(time.time())
    routes = [
        Route("/v1/chat/completions", posted(chat_completions), methods=["POST"]),
        Route("/v1/completions", posted(completions), methods=["POST"]),
        Route("/v1/responses", posted(responses), methods=["POST"]),
        Route("/tokenize", posted(_tokenize), methods=["POST"]),
        Route("/v1/models", read(lambda one: {"object": "list", "data": [_model(one, began)]})),
        Route("/version", read(lambda _: {"version": __version__})),
        Route("/metrics", metrics),
        Route("/health", health),
        Route("/ping", health),
        *(page.routes() if with_page else []),
    ]
    allow = Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    handlers: dict[Any, Any] = {
        ApiError: lambda _, error: error.response(),
        HippoError: lambda _, error: explained(error).response(),
        HTTPException: lambda _, error: ApiError(error.status_code, f"{error.detail}").response(),
        ClientDisconnect: lambda _, error: Response(status_code=499),
        Exception: lambda _, error: explained(error).response(),
    }
    return Starlette(routes=routes, middleware=[allow] if origins else [], exception_handlers=handlers)


def _require_key(request: Request, keys: tuple[str, ...]) -> None:
    """Raises ApiError."""
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if keys and not any(hmac.compare_digest(given, key.encode()) for key in keys):
        raise ApiError(401, "the API key is wrong or missing: send it as Authorization: Bearer KEY")


def most_bytes(media: MediaPolicy) -> int:
    """Of a body: one medium in base64, and the words."""
    return media.max_bytes * 4 // 3 + _SLACK


async def _json(request: Request, service: Service) -> Any:
    """A body as JSON. Raises ApiError."""
    most = most_bytes(service.media)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise ApiError(413, f"the body has more than {most >> 20} MiB")
    try:
        value = json.loads(body)
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(value, ensure_ascii=False).encode()  # half a character is no text
        return value
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON") from None


def _model(service: Service, began: int) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": began,
        "owned_by": "hippo",
        "root": service.model,
        "parent": None,
        "max_model_len": service.context,
    }


async def _tokenize(service: Service, request: Request, given: Any) -> Response:
    body: TokenizeBody = parsed(TokenizeBody, given)
    service.require_model(body.model)
    ids = service.llm.processor.tokenizer(body.prompt, add_special_tokens=body.add_special_tokens).input_ids
    return JSONResponse({"count": len(ids), "tokens": ids, "max_model_len": service.context})
