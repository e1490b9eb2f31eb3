"""Runs the application by uvicorn: ready after its warm-up, drained when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

__all__ = ["serve"]

log = logging.getLogger(__name__)

# From the signal on, while balancers learn from /ready that they are to send no more.
DRAIN_S = 2.0
# For the requests that are under way then, beside their own deadlines.
LONGEST_SHUTDOWN_S = 120


class _Uvicorn(uvicorn.Server):
    """Drains on SIGTERM and SIGINT, ends at once on the second one, and returns a code."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self.app = app
        self.exit_code = 0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals, and do not raise them again at the end, as uvicorn would."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            server = self.app.state.server
            log.info("%s of %s: http://%s:%d", server.variant, server.folder.path, host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 # uvicorn's
        """Be no longer ready, go on for a moment, then answer what is under way and end."""
        server = self.app.state.server
        if not server.ready:
            self.should_exit = True
            self.force_exit = True
            return
        log.info("draining: no longer ready, ending in %.0f s", DRAIN_S)
        server.ready = False
        timer = threading.Timer(DRAIN_S, self._end)
        timer.daemon = True
        timer.start()

    def died(self) -> None:
        """End with an error: nothing can be scored any more."""
        self.exit_code = 1
        self._end()

    def _end(self) -> None:
        self.should_exit = True


def serve(app: Starlette, host: str, port: int, root_path: str) -> int:
    """Answer requests until SIGTERM, and return the exit code."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        root_path=root_path,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=LONGEST_SHUTDOWN_S,
    )
    server = _Uvicorn(config, app)
    app.state.server.on_death = server.died
    asyncio.run(server.serve())
    return server.exit_code
