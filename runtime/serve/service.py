"""A request's way: its key, its body, a place in the queue, its scores, and the answer."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from xopt.runtime.errors import NotFinite
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import machine_name
from xopt.runtime.scoring.encode import Tokens
from xopt.runtime.scoring.scorer import PlannedScorer
from xopt.runtime.serve.body import LARGE_BYTES, read_body
from xopt.runtime.serve.engine import Engine, Overloaded, TimedOut, Work
from xopt.runtime.serve.errors import error_reply
from xopt.runtime.serve.metrics import Metrics
from xopt.runtime.serve.openapi import described, page
from xopt.runtime.serve.shapes import VOYAGE, Ask, BadRequest, Scored, Shape, shape_of

__all__ = ["Service", "Settings"]

log = logging.getLogger(__name__)

DEADLINE_HEADER = "x-request-timeout"
WARNINGS_HEADER = "x-warnings"
VOYAGE_HEADER = "x-voyage-client-user-agent"
# Of the documents that a warning is about, so many are named.
MOST_NAMED = 20
T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How a server treats its clients.

    api_keys: any of them opens the door; none for everybody.
    root_path: a prefix that paths may have.
    deadline_s: how long a request may take that names no time of its own.
    longest_wait_s: how much work may lie before a request that is let in.
    most_bytes: of a body, also when unpacked.
    refuse_cut: answer 422 where a client sends `truncate: false` and a document is too long.
    """

    api_keys: tuple[str, ...] = ()
    root_path: str = ""
    deadline_s: float = 60.0
    longest_wait_s: float = 20.0
    most_bytes: int = 64 << 20
    refuse_cut: bool = False


class Service:
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
        log.error("scoring failed, and the server ends: %s: %s", type(error).__name__, error)
        self.on_death()

    # A request for scores

    async def rerank(self, request: Request) -> Response:
        """Answer a request in the shape that it came in."""
        try:
            self._check_key(request)
            reply = await self._answered(request)
        except ClientDisconnect:
            self.metrics.cancelled.inc()
            reply = Response(status_code=499)
        except Exception as error:  # whatever it was, the client reads an answer
            reply = self._failed(request, error)
        self.metrics.requests.labels(str(reply.status_code)).inc()
        if not self.ready:  # so that the client does not ask on a connection that is to end
            reply.headers["connection"] = "close"
        return reply

    async def _answered(self, request: Request) -> Response:
        started_s = time.monotonic()
        deadline_s = started_s + self._seconds(request)
        body, size = await read_body(request, self.settings.most_bytes)
        shape = shape_of(request.scope["path"], body)
        request.state.shape = shape
        is_large = size >= LARGE_BYTES
        ask = await _beside(is_large, shape.read, body)
        self._observe("read", started_s)
        work = self.engine.admit(ask.pairs, deadline_s)
        try:
            scoring = self._scored(work, ask, is_large)
            scored = await _in_time(request, scoring, deadline_s)
        finally:
            self.engine.release(work)
        reply_s = time.monotonic()
        content = await _beside(is_large, _reply_bytes, shape, ask, scored)
        self._observe("reply", reply_s)
        return _response(content, scored, started_s)

    async def _scored(self, work: Work, ask: Ask, is_large: bool) -> Scored:
        """Tokenise and score an ask's pairs, identical ones once."""
        start_s = time.monotonic()
        tokens, rows = await _beside(is_large, self._tokenised, ask)
        self._observe("tokenise", start_s)
        cut = np.flatnonzero(np.isin(rows, tokens.cut)).tolist()
        if cut:
            self.metrics.cut.inc(len(cut))
            self._check_cut(ask, cut)
        start_s = time.monotonic()
        self.engine.submit(work, tokens)
        logits = self.folder.manifest.ranking(await asyncio.wrap_future(work.done))[rows]
        self._observe("queue_and_score", start_s)
        broken = np.flatnonzero(~np.isfinite(logits)).tolist()
        if len(broken) == len(logits):
            raise NotFinite(
                f"no score of {len(logits)} documents is finite: the weights are damaged, or half "
                "precision overflows; serve onnx-fp32"
            )
        warnings = []
        if cut:
            longest = self.folder.manifest.max_length
            warnings.append(f"cut to {longest} tokens with the query: {_named(cut)}")
        if broken:
            warnings.append(f"last, since their scores are not finite: {_named(broken)}")
        return Scored(logits, int(tokens.lengths[rows].sum()), warnings)

    def _tokenised(self, ask: Ask) -> tuple[Tokens, NDArray[np.intp]]:
        """Return the tokens of the distinct pairs, and the row in them of each pair."""
        distinct: dict[tuple[str, str], int] = {}
        rows = [distinct.setdefault(pair, len(distinct)) for pair in ask.pairs]
        return self.engine.tokenise(list(distinct)), np.array(rows)

    def _check_cut(self, ask: Ask, cut: list[int]) -> None:
        if ask.refuses_cut and self.settings.refuse_cut:
            raise BadRequest(
                f"document {cut[0]} is longer than {self.folder.manifest.max_length} tokens with "
                "the query; shorten it, or let it be cut with truncate: true"
            )

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
        given = request.headers.get("authorization", "").strip()
        scheme, _, key = given.partition(" ")
        if scheme.lower() != "bearer":
            key = given  # some clients send it bare
        sent = key.strip().encode("latin-1")  # the bytes of the header
        known = [hmac.compare_digest(sent, each.encode()) for each in self.settings.api_keys]
        if not any(known):
            raise BadRequest(
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                status=401,
            )

    def _observe(self, stage: str, start_s: float) -> None:
        self.metrics.stage_s.labels(stage).observe(time.monotonic() - start_s)

    def _failed(self, request: Request, error: Exception) -> Response:
        """Answer a request that failed."""
        if isinstance(error, TimedOut):
            self.metrics.timed_out.inc()
        if isinstance(error, Overloaded):
            self.metrics.refused.inc()
        shape = getattr(request.state, "shape", None) or _shape_of_unread(request)
        reply = error_reply(error, shape.errors)
        if reply.status_code == 500:
            log.error("a request failed", exc_info=error)
        return reply

    async def elsewhere(self, _: Request, error: Exception) -> Response:
        """Answer a request for a path or a method that is not there."""
        reply = error_reply(error)
        self.metrics.requests.labels(str(reply.status_code)).inc()
        return reply

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
        return _json({"object": "list", "data": [self._described_model()]})

    async def model(self, _: Request) -> Response:
        """Describe the model, whatever it is called; Xinference's client asks first."""
        return _json(self._described_model())

    async def asks_for_key(self, _: Request) -> Response:
        """Tell whether requests need a key; Xinference's client sends none otherwise."""
        return _json({"auth": bool(self.settings.api_keys)})

    def _described_model(self) -> dict[str, Any]:
        """Return what the clients of OpenAI and of Xinference read."""
        return {
            "id": self.folder.path.name,
            "object": "model",
            "created": 0,
            "owned_by": "xopt",
            "model_type": "rerank",
        }

    async def openapi(self, _: Request) -> Response:
        return _json(described())

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(page())

    async def info(self, _: Request) -> Response:
        """Tell what a client may want to know of the model and the limits."""
        manifest = self.folder.manifest
        measured = manifest.measured.get(machine_name("cpu"), {})
        judged = measured.get("variants", {}).get(self.variant, {})
        return _json(
            {
                "model_id": self.folder.path.name,
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
        )


def _shape_of_unread(request: Request) -> Shape:
    """Return whose shape a request has whose body was not read."""
    if VOYAGE_HEADER in request.headers:
        return VOYAGE
    return shape_of(request.scope["path"], {})


def _end_process() -> None:
    """Ask whatever server runs the application to end."""
    os.kill(os.getpid(), signal.SIGTERM)


async def _in_time(request: Request, work: Coroutine[Any, Any, T], deadline_s: float) -> T:
    """Wait for work as long as its client does and its time lasts, and then cancel it."""
    scored = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait(
            {scored, left},
            timeout=max(0.0, deadline_s - time.monotonic()),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if scored.done():
            return scored.result()
        if left.done():
            raise ClientDisconnect
        raise TimedOut
    finally:
        scored.cancel()
        left.cancel()


async def _client_left(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _beside(is_large: bool, run: Callable[..., T], *arguments: Any) -> T:
    """Run a function here, or in a thread where that would hold up other requests."""
    if is_large:
        return await asyncio.to_thread(run, *arguments)
    return run(*arguments)


def _reply_bytes(shape: Shape, ask: Ask, scored: Scored) -> bytes:
    return orjson.dumps(shape.reply(ask, scored))


def _response(content: bytes, scored: Scored, started_s: float) -> Response:
    headers = {
        "x-compute-tokens": str(scored.tokens),
        "x-total-time": str(round(1000 * (time.monotonic() - started_s))),
    }
    if scored.warnings:  # not every shape has a place for them
        headers[WARNINGS_HEADER] = "; ".join(scored.warnings)
    return Response(content, media_type="application/json", headers=headers)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _named(documents: list[int]) -> str:
    """Name documents by their index, the first of many."""
    rest = len(documents) - MOST_NAMED
    named = ", ".join(map(str, documents[:MOST_NAMED]))
    return f"documents {named}" + (f" and {rest} more" if rest > 0 else "")
