"""A server on a free port, in a thread of the tests' process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.scorer import PlannedScorer
from xopt.runtime.serve import Settings, app


@contextmanager
def served(folder: ModelFolder, variant: str = "onnx-fp32", **settings: Any) -> Iterator[Any]:
    """Yield a client of a server; its `service` and `engine` are the server's."""
    application = app(folder, variant, settings=Settings(**settings))
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="critical"))
    # uvicorn takes signals in the main thread only.
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.service = application.state.service  # type: ignore[attr-defined] # for tests
            client.engine = application.state.service.engine  # type: ignore[attr-defined] # for tests
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def client(tiny: ModelFolder) -> Iterator[Any]:
    with served(tiny) as client:
        yield client


@pytest.fixture(scope="session")
def serve(tiny: ModelFolder) -> Callable[..., AbstractContextManager[Any]]:
    return lambda folder=tiny, **settings: served(folder, **settings)


@contextmanager
def no_forward_ends(scorer: PlannedScorer) -> Iterator[threading.Semaphore]:
    """Let each forward of a scorer wait until the block ends, and count those that began."""
    opened = threading.Event()
    began = threading.Semaphore(0)
    run = scorer.run

    def waiting(*arguments: Any) -> Any:
        began.release()
        assert opened.wait(60)
        return run(*arguments)

    scorer.run = waiting  # type: ignore[method-assign] # to hold a forward
    try:
        yield began
    finally:
        scorer.run = run  # type: ignore[method-assign] # as it was
        opened.set()


@pytest.fixture(scope="session")
def held() -> Callable[[PlannedScorer], AbstractContextManager[threading.Semaphore]]:
    return no_forward_ends
