"""A server on a free port, in a thread of the tests' process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from xopt.runtime.folder import ModelFolder
from xopt.runtime.serve import Settings, app


@contextmanager
def served(folder: ModelFolder, variant: str = "onnx-fp32", **settings: Any) -> Iterator[Any]:
    """Yield a client of a server, whose `app` is the application."""
    application = app(folder, variant, settings=Settings(**settings))
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning"))
    # uvicorn takes signals in the main thread only.
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        client.app = application  # type: ignore[attr-defined]
        yield client
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def client(tiny: ModelFolder) -> Iterator[Any]:
    with served(tiny) as client:
        yield client


@pytest.fixture
def serve(tiny: ModelFolder) -> Callable[..., Any]:
    return lambda **settings: served(tiny, **settings)
