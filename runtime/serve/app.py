"""The ASGI application: its routes, and how it opens a model folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.default import default_variant
from xopt.runtime.scoring.scorer import open_scorer
from xopt.runtime.serve.service import Service, Settings
from xopt.runtime.serve.shapes import PATHS

__all__ = ["app"]

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
    settings = settings or Settings()
    service = Service(folder, scorer, variant, settings)

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(service.engine.start, WARM_UP)
        service.ready = True
        yield
        service.ready = False
        await asyncio.to_thread(service.engine.close)

    application = Starlette(
        routes=_routes(service),
        lifespan=life,
        middleware=[Middleware(_Paths, prefix=settings.root_path.rstrip("/"))],
        exception_handlers={HTTPException: service.elsewhere},
    )
    application.state.service = service
    return application


def _routes(service: Service) -> list[Route]:
    gets = {
        "/": service.health,
        "/health": service.health,
        "/ping": service.health,
        "/ready": service.is_ready,
        "/metrics": service.metrics_text,
        "/info": service.info,
        "/v1/models": service.models,
        "/v1/models/{name:path}": service.model,
        "/v1/cluster/auth": service.asks_for_key,
        "/openapi.json": service.openapi,
        "/docs": service.docs,
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
