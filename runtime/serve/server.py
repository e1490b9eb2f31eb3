"""Runs the application by uvicorn: ready after its warm-up, drained when it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from xopt.runtime.errors import BadInput

__all__ = ["bound", "serve"]

log = logging.getLogger(__name__)

# From the signal on, while balancers learn from /ready that they are to send no more.
DRAIN_S = 2.0
# Longer than clients and balancers keep a connection that nobody uses, so that they close it.
KEEP_ALIVE_S = 75
# For who was connected last to send the request: uvicorn closes connections without one.
HEARING_S = 0.5
# To write the last answers, beside the time that requests have.
WRITING_S = 10


class _Uvicorn(uvicorn.Server):
    """Drains on SIGTERM and SIGINT, ends at once on the second one, and keeps a code."""

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
            service = self.app.state.service
            place = f"[{host}]" if ":" in host else host
            log.info("%s of %s: http://%s:%d", service.variant, service.folder.path, place, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 # uvicorn's
        """Be no longer ready, go on for a moment, then answer what is under way and end."""
        service = self.app.state.service
        if not service.ready:  # it warms up, or this is the second signal
            log.warning("ending at once; requests that are under way get no answer")
            # uvicorn would cancel them, each with a traceback, and wait for forwards.
            os._exit(128 + sig)
        service.ready = False
        log.info("no longer ready; ending in %.0f s, when all is answered", DRAIN_S)
        timer = threading.Timer(DRAIN_S, self._end)
        timer.daemon = True
        timer.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nobody else, hear those who were taken last, then answer what is under way."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(HEARING_S)
        await super().shutdown(sockets)

    def died(self) -> None:
        """End with an error: nothing can be scored any more."""
        self.exit_code = 1
        self._end()

    def _end(self) -> None:
        self.should_exit = True


def bound(host: str, port: int) -> socket.socket:
    """Return a socket of an address, which does not listen yet.

    Raises BadInput where another process has it, or this machine does not.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it lets two processes have the same one
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except OSError as error:
        place.close()
        raise BadInput(
            f"`host={host}` `port={port}`: cannot listen there ({error.strerror or error}); "
            "give another address or port"
        ) from error
    return place


def serve(app: Starlette, place: socket.socket) -> int:
    """Answer requests until SIGTERM, and return the exit code."""
    service = app.state.service
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(service.settings.deadline_s) + WRITING_S,
    )
    server = _Uvicorn(config, app)
    service.on_death = server.died
    server.run([place])  # on uvloop, where it is installed
    return server.exit_code if server.started else 1
