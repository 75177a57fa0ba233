"""The server as replicas of Ray Serve. Requests on one video go to the replica that has it in its cache."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount

from hippo.batch.rows import PLACES
from hippo.errors import BadRequest, HippoError
from hippo.llm import load
from hippo.ray.cluster import Layout, connected, machines
from hippo.serve.app import make_app, most_bytes
from hippo.serve.errors import ApiError
from hippo.serve.media import MediaPolicy
from hippo.serve.service import Service, unless_gone

NAME = "hippo"
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_LAST = 50.0  # seconds that answers under way have when the server stops; Ray's client waits for 60
_SCOPE = ("type", "http_version", "method", "path", "raw_path", "root_path", "scheme", "query_string", "headers")


@dataclass(frozen=True)
class Served:
    """What each replica serves. where: options of `hippo.load`. name, media, max_waiting: see `Service`. app: options
    of `hippo.serve.app.make_app`."""

    target: str
    draft: str | None
    where: Mapping[str, Any]
    name: str
    media: MediaPolicy
    max_waiting: int = 64
    app: Mapping[str, Any] = field(default_factory=dict)


class Pairs:
    """A replica: a loaded pair and the whole server, without a port."""

    def __init__(self, served: Served) -> None:
        self._failure: HippoError | None = None
        try:
            self._llm = load(served.target, served.draft, **served.where)
            self._service = Service(self._llm, served.name, served.media, served.max_waiting)
            self._app = make_app(self._service, **served.app)
            self._service.workers.start()
        except HippoError as error:  # raised here, it would be tried again and come as a traceback
            self._failure = error

    def failure(self) -> HippoError | None:
        """Why the pair could not be loaded."""
        return self._failure

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[dict[str, Any]]:
        """The ASGI messages that answer a request."""
        messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in given:
                return message
            return await asyncio.Future()  # a client that leaves cancels all of this

        async def work() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(work())
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit parts of it may be gone already
            self._service.close()
            self._llm.close()


class Front:
    """Takes requests in and sends each to a replica: by its first video or image, or to any if there is none."""

    def __init__(self, pairs: Any, most: int) -> None:
        self._pairs, self._most = pairs, most

    def __serve_build_asgi_app__(self) -> Any:
        return Starlette(routes=[Mount("/", app=self._route)])

    async def _route(self, scope: Any, receive: Any, send: Any) -> None:
        request, body = Request(scope, receive), bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._most:
                break  # the replica refuses it
        handle = self._pairs.options(stream=True, session_id=key_of(body))
        coming = handle.answer.remote({name: scope[name] for name in _SCOPE if name in scope}, bytes(body))

        async def passing() -> None:
            async for message in coming:
                await send(message)

        try:
            with suppress(ApiError):  # the client has left: nobody reads an error
                await unless_gone(request, passing())
        finally:
            coming.cancel()


def key_of(body: bytes | bytearray) -> str:
    """Equal for requests on the same first video or image; "" where there is none."""
    with suppress(ValueError, RecursionError):
        for source in _sources(json.loads(body)):
            return blake2b(source.encode(errors="replace"), digest_size=16).hexdigest()
    return ""


def _sources(value: Any) -> Iterator[str]:
    """What parts of a body name, in order."""
    if isinstance(value, list):
        for one in value:
            yield from _sources(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name in PLACES and isinstance(one, str):
                yield one
            else:
                yield from _sources(one)


@contextmanager
def deployed(
    address: str, host: str, port: int, served: Served, replicas: tuple[int, int] = (1, 1), gpus: float = 1.0
) -> Iterator[None]:
    """Inside, the server answers at host:port on each machine of a cluster that has replicas.

    address: see `hippo.ray.cluster.connected`. replicas: at least and at most; more come as more requests wait. gpus:
    of each, where the cluster has any. Raises HippoError.
    """
    with connected(address):
        layout = Layout.of(machines(), replicas[1], gpus, served.where.get("device", "auto"))
        running = served.where["max_running"]
        router: dict[str, Any] = {"request_router_class": _ROUTER}
        pairs = serve.deployment(
            name="pairs",
            ray_actor_options={"num_cpus": layout.cpus, "num_gpus": layout.gpus},
            max_ongoing_requests=running + served.max_waiting,
            graceful_shutdown_timeout_s=_LAST,
            autoscaling_config=AutoscalingConfig(
                min_replicas=replicas[0], max_replicas=replicas[1], target_ongoing_requests=running
            ),
            request_router_config=RequestRouterConfig(**router),
        )(Pairs)
        front = serve.deployment(
            name="front",
            ray_actor_options={"num_cpus": 0},
            max_ongoing_requests=1000,
            graceful_shutdown_timeout_s=_LAST,
        )(serve.ingress()(Front))
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        started = not serve.status().proxies
        if started:
            serve.start(http_options=HTTPOptions(host=host, port=port))
        try:
            serve.run(front.bind(pairs.bind(served), most_bytes(served.media)), name=NAME)
            failure = serve.get_deployment_handle("pairs", NAME).failure.remote().result()
            if failure is not None:
                raise failure
            yield
        except RuntimeError as error:
            raise HippoError(f"Ray Serve cannot deploy ({' '.join(str(error).split())[:200]})", "see its log") from None
        finally:
            serve.delete(NAME)  # what is being answered ends first
            if started:
                serve.shutdown()


def serve_until_stopped(
    address: str,
    host: str,
    port: int,
    served: Served,
    replicas: tuple[int, int],
    gpus: float,
    on_ready: Callable[[int], None],
) -> None:
    """Serve until SIGTERM or SIGINT: replicas then finish what they answer. on_ready: called with the port."""
    if port == 0:
        raise BadRequest("--port 0 does not go with --ray", "name a port")
    with deployed(address, host, port, served, replicas, gpus):
        stopped = threading.Event()
        # Only now: Ray sets handlers of its own, which would end this process before its replicas.
        before = {one: signal.signal(one, lambda *_: stopped.set()) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            on_ready(port)
            stopped.wait()
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
