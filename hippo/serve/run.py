"""Running the server until it is asked to stop: what is being answered then is finished."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from hippo.serve.service import Service


class Server(uvicorn.Server):
    """Stops when its last request has ended; a second signal stops it at once. on_ready: called when it listens."""

    def __init__(self, config: uvicorn.Config, service: Service, on_ready: Any) -> None:
        super().__init__(config)
        self._service, self._on_ready = service, on_ready
        service.on_idle = self._stop_if_drained

    async def startup(self, sockets: Any = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without the signal raised again at the end: a drained server has done what it was asked."""
        before = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn."""
        if self._service.draining:
            self.force_exit = self.should_exit = True
        self._service.draining = True
        self._stop_if_drained()

    def _stop_if_drained(self) -> None:
        if self._service.draining and not self._service.live:
            self.should_exit = True


def serve(app: Any, service: Service, host: str, port: int, on_ready: Any) -> None:
    """Serve until SIGTERM or SIGINT. on_ready: called when it listens. Raises OSError where the port is taken."""
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, lifespan="off")
    Server(config, service, on_ready).run()
