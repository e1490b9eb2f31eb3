"""The ASGI application: its routes, and how it opens a model folder."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.default import default_variant
from xopt.runtime.scoring.scorer import open_scorer
from xopt.runtime.serve.service import Service
from xopt.runtime.serve.settings import Settings
from xopt.runtime.serve.shapes import PATHS
from xopt.runtime.serve.status import Status

__all__ = ["app"]

# Of a forward: a request that comes waits for those under way. Larger ones gain little on a CPU.
MOST_TOKENS = 512
# Of replies, what scripts on other sites may read.
READABLE_HEADERS = (
    "Retry-After",
    "X-Compute-Tokens",
    "X-Scored",
    "X-Total-Time",
    "X-Warnings",
)
TEXT = "shutil.copy(src, dst) copies a file. " * 8
# Some forwards' worth.
WARM_UP = [(f"how to copy file {number}", TEXT) for number in range(32)]


def app(
    folder: str | Path | ModelFolder,
    variant: str | None = None,
    *,
    threads: int | None = None,
    settings: Settings | None = None,
    trust_remote_code: bool = False,
) -> Starlette:
    """Return an ASGI application that scores by a model folder, for any ASGI server.

    It warms up when its server starts it, and `/ready` says when it is done. `variant` and
    `threads` are those of `open_scorer`. Raises BadInput as that does, and where the model gives
    several labels of which none ranks.
    """
    if not isinstance(folder, ModelFolder):
        folder = ModelFolder.open(folder, trust_remote_code)
    if not folder.manifest.ranks:
        raise BadInput(
            f"{folder.path}: the model has {folder.manifest.labels} labels, and no one score to "
            "rank by; export it with `rank_label=`"
        )
    variant = variant or default_variant(folder, "cpu")
    scorer = open_scorer(folder, variant, threads=threads, trust_remote_code=trust_remote_code)
    plan = scorer.plan
    scorer = scorer.with_plan(replace(plan, tokens=min(plan.tokens, MOST_TOKENS)))
    settings = settings or Settings()
    service = Service(folder, scorer, variant, settings)
    application = Starlette(
        routes=_routes(service),
        lifespan=lambda _: _life(service),
        middleware=_middleware(settings),
        exception_handlers={HTTPException: service.elsewhere},
    )
    application.state.service = service
    return application


@asynccontextmanager
async def _life(service: Service) -> AsyncIterator[None]:
    """Warm up, serve, and end the engine."""
    await asyncio.to_thread(service.engine.start, WARM_UP)
    service.ready = True
    with _one_thread_for_numpy() if service.cascade.ranker else nullcontext():
        yield
    service.ready = False
    await asyncio.to_thread(service.engine.close)


def _one_thread_for_numpy() -> AbstractContextManager[Any]:
    """Leave the cores to the forwards; what a cascade reckons beside them takes one."""
    from threadpoolctl import threadpool_limits  # which an image without cascades lacks

    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def _middleware(settings: Settings) -> list[Middleware]:
    middleware = [Middleware(_Paths, prefix=_prefix(settings.root_path))]
    if settings.cors_origins:
        for origin in settings.cors_origins:
            _check_origin(origin)
        # It comes first: a browser asks without a key, and reads errors with these headers only.
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=READABLE_HEADERS,
        )
        middleware.insert(0, cors)
    return middleware


def _prefix(root_path: str) -> str:
    """Return a prefix as paths begin with it."""
    name = root_path.strip("/")
    return f"/{name}" if name else ""


def _check_origin(origin: str) -> None:
    """Refuse what no browser sends, which would never match."""
    if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+", origin):
        raise BadInput(
            f"`cors_origins={origin}`: is no origin; give scheme, host and port alone, in small "
            "letters, such as https://example.com, or * for all"
        )


def _routes(service: Service) -> list[Route]:
    status = Status(service)
    gets = {
        "/": status.health,
        "/health": status.health,
        "/ping": status.health,
        "/ready": status.is_ready,
        "/metrics": status.metrics_text,
        "/info": status.info,
        "/v1/models": status.models,
        "/v1/models/{name:path}": status.model,
        "/v1/cluster/auth": status.asks_for_key,
        "/openapi.json": status.openapi,
        "/docs": status.docs,
        "/.well-known/live": status.is_live_for_weaviate,
        "/.well-known/ready": status.is_ready_for_weaviate,
        "/meta": status.meta,
    }
    routes = [Route(path, service.rerank, methods=["POST"]) for path in PATHS]
    routes += [Route(path, answer, methods=["GET"]) for path, answer in gets.items()]
    routes += [Route(path, _options, methods=["OPTIONS"]) for path in {*PATHS, *gets}]
    return routes


async def _options(_: Request) -> Response:
    return Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS, POST"})


class _Paths:
    """Lets a path have a prefix, and a slash at its end, without a redirect.

    Clients do not follow one from a POST. A proxy may take the prefix away or leave it on.
    """

    def __init__(self, application: ASGIApp, prefix: str) -> None:
        self.application = application
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            for prefix in (scope.get("root_path", ""), self.prefix):
                if f"{path}/".startswith(f"{prefix}/"):
                    path = path[len(prefix) :]
            scope = {**scope, "path": path.rstrip("/") or "/", "root_path": ""}
        await self.application(scope, receive, send)
