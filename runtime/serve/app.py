"""The ASGI application: routes, keys, errors, and a request's way through the engine."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import machine_name
from xopt.runtime.scoring.default import default_variant
from xopt.runtime.scoring.scorer import PlannedScorer, open_scorer
from xopt.runtime.serve.body import LARGE_BYTES, read_body
from xopt.runtime.serve.engine import Closed, Engine, Overloaded, TimedOut
from xopt.runtime.serve.metrics import Metrics
from xopt.runtime.serve.openapi import described, page
from xopt.runtime.serve.shapes import (
    COHERE,
    PATHS,
    TEI,
    Ask,
    BadRequest,
    Scored,
    Shape,
    shape_of,
)

__all__ = ["Settings", "app"]

log = logging.getLogger(__name__)

WARM_UP = [("how to copy a file", "shutil.copy(src, dst) copies a file. " * 8)] * 4
DEADLINE_HEADER = "x-request-timeout"
# What TEI's clients read beside the text of an error.
TEI_KINDS = {
    400: "empty",
    401: "unauthorized",
    413: "validation",
    415: "validation",
    422: "validation",
    424: "backend",
    429: "overloaded",
    503: "unhealthy",
    504: "overloaded",
}


@dataclass(frozen=True)
class Settings:
    """How a server treats its clients.

    api_keys: any of them opens the door; none for everybody.
    deadline_s: how long a request may take that names no time of its own.
    longest_wait_s: how much work may lie before a request that is let in.
    most_bytes: of a body, also when unpacked.
    refuse_cut: answer 422 where a client sends `truncate: false` and a document is too long.
    """

    api_keys: tuple[str, ...] = ()
    deadline_s: float = 60.0
    longest_wait_s: float = 20.0
    most_bytes: int = 64 << 20
    refuse_cut: bool = False


class Server:
    """What the routes of one application share."""

    def __init__(
        self, folder: ModelFolder, scorer: PlannedScorer, variant: str, settings: Settings
    ) -> None:
        self.folder = folder
        self.variant = variant
        self.settings = settings
        self.metrics = Metrics()
        self.engine = Engine(scorer, self.metrics, settings.longest_wait_s, self._died)
        self.on_death: Callable[[], None] = _end_process
        self.ready = False

    def _died(self, error: BaseException) -> None:
        """Say so, and end the process: a server that scores nothing is none."""
        self.ready = False
        log.error("the engine died, and the server ends: %s: %s", type(error).__name__, error)
        self.on_death()

    # A request for scores

    async def rerank(self, request: Request) -> Response:
        """Answer a request in the shape that it came in."""
        try:
            self._check_key(request)
            return await self._answered(request)
        except ClientDisconnect:
            self.metrics.cancelled.inc()
            return Response(status_code=499)

    async def _answered(self, request: Request) -> Response:
        started_s = time.monotonic()
        deadline_s = started_s + self._seconds(request)
        body, size = await read_body(request, self.settings.most_bytes)
        shape = shape_of(_path(request), body)
        request.state.shape = shape
        is_large = size >= LARGE_BYTES
        ask = await _beside(is_large, shape.read, body)
        self._observe("read", started_s)
        expected = self._admitted(ask, deadline_s - started_s)
        try:
            scored = await self._scored(request, ask, is_large, deadline_s)
        finally:
            self.engine.release(expected)
        reply_s = time.monotonic()
        content = await _beside(is_large, _reply_bytes, shape, ask, scored)
        self._observe("reply", reply_s)
        return self._response(content, scored, started_s)

    def _admitted(self, ask: Ask, seconds: float) -> float:
        if not self.ready:
            raise Closed
        try:
            return self.engine.admit(ask.pairs, seconds)
        except Overloaded:
            self.metrics.refused.inc()
            raise

    async def _scored(
        self, request: Request, ask: Ask, is_large: bool, deadline_s: float
    ) -> Scored:
        """Tokenise and score an ask's pairs, identical ones once."""
        distinct = dict.fromkeys(ask.pairs)
        places = {pair: place for place, pair in enumerate(distinct)}
        rows = np.array([places[pair] for pair in ask.pairs])
        start_s = time.monotonic()
        tokens = await _beside(is_large, self.engine.tokenise, list(distinct))
        self._observe("tokenise", start_s)
        cut = set(tokens.cut.tolist())
        long = [index for index, row in enumerate(rows.tolist()) if row in cut]
        if long:
            self.metrics.cut.inc(len(long))
            self._check_cut(ask, long)
        start_s = time.monotonic()
        logits = await self._logits(request, tokens, deadline_s)
        self._observe("queue_and_score", start_s)
        logits = logits[rows]
        total = int(tokens.lengths[rows].sum())
        return Scored(logits, total, _warnings(long, logits, self.folder.manifest.max_length))

    def _check_cut(self, ask: Ask, long: list[int]) -> None:
        if ask.refuses_cut and self.settings.refuse_cut:
            raise BadRequest(
                f"document {long[0]} is longer than {self.folder.manifest.max_length} tokens with "
                "the query; shorten it, or let it be cut with truncate: true"
            )

    async def _logits(self, request: Request, tokens: Any, deadline_s: float) -> Any:
        """Wait for an ask's logits, as long as its client does and its time lasts."""
        work = self.engine.submit(tokens, deadline_s)
        scored = asyncio.wrap_future(work.done)
        left = asyncio.ensure_future(_client_left(request))
        try:
            await asyncio.wait(
                {scored, left},
                timeout=max(0.0, deadline_s - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if scored.done():
                return scored.result()
            work.done.cancel()
            if left.done():
                raise ClientDisconnect
            raise TimedOut
        finally:
            left.cancel()

    def _seconds(self, request: Request) -> float:
        """Return the time that a request has."""
        value = request.headers.get(DEADLINE_HEADER)
        if value is None:
            return self.settings.deadline_s
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise BadRequest(f"{DEADLINE_HEADER} is {value!r}; send seconds over 0", status=400)
        return min(seconds, self.settings.deadline_s)

    def _check_key(self, request: Request) -> None:
        """Compare the client's key with each one in constant time."""
        if not self.settings.api_keys:
            return
        given = request.headers.get("authorization", "")
        scheme, _, key = given.partition(" ")
        if scheme.lower() != "bearer":
            key = given  # some clients send it bare
        known = [
            hmac.compare_digest(key.strip().encode(), each.encode())
            for each in self.settings.api_keys
        ]
        if not any(known):
            raise BadRequest(
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                status=401,
            )

    def _observe(self, stage: str, start_s: float) -> None:
        self.metrics.stage_s.labels(stage).observe(time.monotonic() - start_s)

    def _response(self, content: bytes, scored: Scored, started_s: float) -> Response:
        headers = {
            "x-compute-tokens": str(scored.tokens),
            "x-total-time": str(round(1000 * (time.monotonic() - started_s))),
        }
        return Response(content, media_type="application/json", headers=headers)

    # Errors

    async def failed(self, request: Request, error: Exception) -> Response:
        """Answer an error in a body that every client can read."""
        status, message, headers = _status(error)
        if isinstance(error, TimedOut):
            self.metrics.timed_out.inc()
        shape = getattr(request.state, "shape", TEI if _path(request) == "/predict" else COHERE)
        if shape.tei_errors:
            content: Any = {"error": message, "error_type": TEI_KINDS.get(status, "backend")}
        else:
            kind = "server_error" if status >= 500 else "invalid_request_error"
            error_body = {"message": message, "type": kind, "code": status, "param": None}
            content = {"error": error_body, "message": message, "detail": message}
        return Response(orjson.dumps(content), status, headers, "application/json")

    # Operation

    async def health(self, _: Request) -> Response:
        """Tell that the process is alive; no queue is asked."""
        return _json({"status": "ok"})

    async def is_ready(self, _: Request) -> Response:
        return _json({"ready": self.ready}, 200 if self.ready else 503)

    async def metrics_text(self, _: Request) -> Response:
        self.metrics.queue_requests.set(self.engine.queued_requests)
        self.metrics.queue_tokens.set(self.engine.queued_tokens)
        self.metrics.rate.set(self.engine.tokens_per_s)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, _: Request) -> Response:
        model = {"id": self.folder.path.name, "object": "model", "created": 0, "owned_by": "xopt"}
        return _json({"object": "list", "data": [model]})

    async def openapi(self, _: Request) -> Response:
        return _json(described())

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(page(request.scope.get("root_path", "")))

    async def info(self, _: Request) -> Response:
        return _json(self.about())

    def about(self) -> dict[str, Any]:
        """Return what a client may want to know of the model and the limits."""
        manifest = self.folder.manifest
        measured = manifest.measured.get(machine_name("cpu"), {})
        judged = measured.get("variants", {}).get(self.variant, {})
        return {
            "model_id": self.folder.path.name,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "variant": self.variant,
            "max_input_length": manifest.max_length,
            "max_body_bytes": self.settings.most_bytes,
            "max_client_batch_size": None,
            "auto_truncate": not self.settings.refuse_cut,
            "deadline_s": self.settings.deadline_s,
            "agreement": {
                "verdict": judged.get("verdict"),
                "queries": measured.get("queries"),
                "measures": judged.get("measures", {}),
            },
            "tokens_per_s": round(self.engine.tokens_per_s),
        }


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
    if folder.manifest.labels != 1:
        raise BadInput(
            f"{folder.path}: gives {folder.manifest.labels} labels, and a server ranks by one; "
            "export it with `rank_label=`"
        )
    variant = variant or default_variant(folder, "cpu")
    scorer = open_scorer(folder, variant, threads=threads, trust_remote_code=trust_remote_code)
    server = Server(folder, scorer, variant, settings or Settings())

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(server.engine.start, WARM_UP)
        server.ready = True
        yield
        server.ready = False
        await asyncio.to_thread(server.engine.close)

    posts = [Route(path, server.rerank, methods=["POST"]) for path in PATHS]
    gets = [
        Route("/health", server.health, methods=["GET"]),
        Route("/", server.health, methods=["GET"]),
        Route("/ping", server.health, methods=["GET"]),
        Route("/ready", server.is_ready, methods=["GET"]),
        Route("/metrics", server.metrics_text, methods=["GET"]),
        Route("/info", server.info, methods=["GET"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/openapi.json", server.openapi, methods=["GET"]),
        Route("/docs", server.docs, methods=["GET"]),
    ]
    errors = (BadRequest, BadInput, Overloaded, TimedOut, Closed)
    application = Starlette(
        routes=[*posts, *gets],
        lifespan=life,
        exception_handlers=dict.fromkeys(errors, server.failed),
    )
    application.state.server = server
    return application


def _end_process() -> None:
    """Ask whatever server runs the application to end."""
    os.kill(os.getpid(), signal.SIGTERM)


def _path(request: Request) -> str:
    """Return the path without a prefix and without a slash at its end."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return path.rstrip("/") or "/"


def _reply_bytes(shape: Shape, ask: Ask, scored: Scored) -> bytes:
    return orjson.dumps(shape.reply(ask, scored))


def _warnings(long: list[int], logits: Any, max_length: int) -> list[str]:
    """Say which documents were cut, and which have no score."""
    warnings = []
    if long:
        named = ", ".join(map(str, long[:20])) + (", ..." if len(long) > 20 else "")
        warnings.append(f"{len(long)} documents were cut to {max_length} tokens: {named}")
    broken = np.flatnonzero(~np.isfinite(logits)).tolist()
    if broken:
        named = ", ".join(map(str, broken[:20]))
        warnings.append(f"the model's scores of {len(broken)} documents are not finite: {named}")
    return warnings


def _status(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Return the status, the message and the headers of an error."""
    if isinstance(error, BadRequest):
        return error.status, str(error), {}
    if isinstance(error, Overloaded):
        return 429, str(error), {"Retry-After": str(round(error.retry_s + 0.5))}
    if isinstance(error, TimedOut):
        return 504, "the time of this request is over", {}
    if isinstance(error, Closed):
        return 503, "the server is starting or ending", {"Retry-After": "5"}
    return 503, str(error), {}


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


async def _beside(is_large: bool, run: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function here, or in a thread where that would hold up other requests."""
    if is_large:
        return await asyncio.to_thread(run, *arguments)
    return run(*arguments)


async def _client_left(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
