"""A request's way: its key, its body, a place in the queue, its scores, and the answer."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from xopt.runtime.errors import NotFinite
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.encode import Tokens
from xopt.runtime.scoring.scorer import PlannedScorer
from xopt.runtime.serve.body import LARGE_BYTES, Bodies
from xopt.runtime.serve.cascade import ServedCascade, is_asked
from xopt.runtime.serve.engine import Engine, Overloaded, QueuedRequest, TimedOut
from xopt.runtime.serve.errors import error_reply
from xopt.runtime.serve.metrics import Metrics
from xopt.runtime.serve.record import Record, log_request
from xopt.runtime.serve.settings import Settings
from xopt.runtime.serve.shapes import Ask, BadRequest, Scored, Shape, shape_of

__all__ = ["Service"]

log = logging.getLogger(__name__)

DEADLINE_HEADER = "x-request-timeout"
CASCADE_HEADER = "x-cascade"
WARNINGS_HEADER = "x-warnings"
SCORED_HEADER = "x-scored"
# Texts from here on are tokenised in a thread.
LARGE_CHARACTERS = 1 << 14
# Of the documents that a warning is about, so many are named.
MOST_NAMED = 20
T = TypeVar("T")


class Service:
    """What the routes of one application share."""

    def __init__(
        self, folder: ModelFolder, scorer: PlannedScorer, variant: str, settings: Settings
    ) -> None:
        self.folder = folder
        self.variant = variant
        self.settings = settings
        self.metrics = Metrics()
        self.bodies = Bodies(settings.most_bytes)
        self.cascade = ServedCascade.of(folder, scorer)
        self.engine = Engine(scorer, self.metrics, settings.longest_wait_s, self._died)
        self.on_death: Callable[[], None] = _end_process
        self.ready = False
        self._listeners = _listeners(folder, settings)

    def _died(self, error: BaseException) -> None:
        """Say so, and end the process: a server that scores nothing is none."""
        self.ready = False
        log.error("scoring failed, and the server ends: %s: %s", type(error).__name__, error)
        self.on_death()

    async def rerank(self, request: Request) -> Response:
        """Answer a request in the shape that it came in."""
        record = Record(request, self.metrics)
        try:
            self._check_key(request)
            reply = await self._answered(record)
        except ClientDisconnect:
            self.metrics.cancelled.inc()
            reply = Response(status_code=499)
        except Exception as error:  # whatever it was, the client reads an answer
            reply = self._failed(record, error)
        self._tell(record, reply)
        # So that the client asks no more on a connection that is to end, or that is out of step.
        if not self.ready or reply.status_code == 408:
            reply.headers["connection"] = "close"
        return reply

    async def _answered(self, record: Record) -> Response:
        request = record.request
        deadline_s = record.started_s + self._seconds(request)
        with record.stage("read"):
            body, size = await self._read(request, deadline_s)
            record.shape = shape = shape_of(record.path, body)
            is_large = size >= LARGE_BYTES
            record.ask = ask = await _beside(is_large, shape.read, body)
        cascade_asked = is_asked(request.headers.get(CASCADE_HEADER))
        why_all = self.cascade.why_all(ask) if cascade_asked else ""
        by_cascade = cascade_asked and not why_all
        expected = self.cascade.expected(ask.pairs) if by_cascade else ask.pairs
        queued = self.engine.admit(expected, deadline_s)
        try:
            way = self._cascaded if by_cascade else self._scored
            scored = await _in_time(request, way(queued, record, ask), deadline_s)
        finally:
            self.engine.release(queued)
        if why_all:
            warnings = [*scored.warnings, why_all]
            scored = replace(scored, warnings=warnings, count=len(ask.pairs))
        record.scored = scored
        with record.stage("reply"):
            content = await _beside(is_large, _reply_bytes, shape, ask, scored)
        return _response(content, scored, record.milliseconds())

    async def _read(self, request: Request, deadline_s: float) -> tuple[dict[str, Any], int]:
        """Return the body and its size. Raises BadRequest where it does not come in time."""
        left_s = deadline_s - time.monotonic()
        try:
            return await asyncio.wait_for(self.bodies.read(request), left_s)
        except asyncio.TimeoutError as error:
            message = "the body did not come within the time of the request; send it at once"
            raise BadRequest(message, 408) from error

    async def _scored(self, queued: QueuedRequest, record: Record, ask: Ask) -> Scored:
        """Tokenise and score an ask's pairs, identical ones once."""
        characters = sum(len(query) + len(text) for query, text in ask.pairs)
        with record.stage("tokenise"):
            if characters < LARGE_CHARACTERS:
                tokens, rows = self._tokenised(queued, ask)
            else:
                tokens, rows = await self.engine.beside(self._tokenised, queued, ask)
        cut = np.flatnonzero(np.isin(rows, tokens.cut)).tolist()
        self._count_cut(record, cut)
        self._check_cut(ask, cut)
        with record.stage("queue_and_score"):
            self.engine.submit(queued, tokens)
            logits = self.folder.manifest.ranking(await asyncio.wrap_future(queued.done))[rows]
        broken = np.flatnonzero(~np.isfinite(logits)).tolist()
        warnings = self._warnings(cut, broken, logits)
        return Scored(logits, int(tokens.lengths[rows].sum()), warnings)

    async def _cascaded(self, queued: QueuedRequest, record: Record, ask: Ask) -> Scored:
        """Score those of an ask's documents that the cascade asks for, block by block."""
        with record.stage("tokenise"):
            run = await self.engine.beside(self.cascade.run, ask)
        with record.stage("queue_and_score"):
            block = await self.engine.beside(run.next_block)
            while block is not None:
                self._check_cut(ask, run.cut)
                self.engine.submit(queued, block, more_follow=True)
                scores = self.folder.manifest.ranking(await asyncio.wrap_future(queued.done))
                block = await self.engine.beside(run.next_block, scores)
        self._count_cut(record, run.cut)
        self.metrics.cascaded(run.count, len(ask.pairs) - run.count)
        broken = sorted(run.partial.not_finite.tolist())
        warnings = self._warnings(sorted(run.cut), broken, run.partial.scores)
        return Scored(run.partial.scores, run.token_count, warnings, run.count)

    def _warnings(
        self, cut: list[int], broken: list[int], logits: NDArray[np.float32]
    ) -> list[str]:
        """Return what to say of scores. Raises NotFinite where none is finite."""
        if not np.isfinite(logits).any():
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
        return warnings

    def _tokenised(self, queued: QueuedRequest, ask: Ask) -> tuple[Tokens, NDArray[np.intp]]:
        """Return the tokens of the distinct pairs, and the row in them of each pair."""
        distinct: dict[tuple[str, str], int] = {}
        rows = [distinct.setdefault(pair, len(distinct)) for pair in ask.pairs]
        return self.engine.tokenise(queued, list(distinct)), np.array(rows)

    def _count_cut(self, record: Record, cut: list[int]) -> None:
        record.cut = len(cut)
        self.metrics.cut.inc(len(cut))

    def _check_cut(self, ask: Ask, cut: list[int]) -> None:
        if cut and ask.refuses_cut and self.settings.refuse_cut:
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

    def _tell(self, record: Record, reply: Response) -> None:
        """Count a request that was answered, and tell of it whoever listens."""
        record.status = reply.status_code
        self.metrics.requests.labels(str(record.status)).inc()
        for listener in self._listeners:
            listener(record)

    def _failed(self, record: Record, error: Exception) -> Response:
        """Answer a request that failed."""
        if isinstance(error, TimedOut):
            self.metrics.timed_out.inc()
        if isinstance(error, Overloaded):
            self.metrics.refused.inc()
        reply = error_reply(error, record.shape.errors if record.shape else "unread")
        if reply.status_code == 500:
            record.error = error
            log.error("a request failed", exc_info=error)
        return reply

    async def elsewhere(self, request: Request, error: Exception) -> Response:
        """Answer a request for a path or a method that is not there."""
        reply = error_reply(error)
        self._tell(Record(request, self.metrics), reply)
        return reply


def _listeners(folder: ModelFolder, settings: Settings) -> list[Callable[[Record], None]]:
    """Return what is told of each request that was answered."""
    listeners: list[Callable[[Record], None]] = []
    if settings.log_requests:
        listeners.append(log_request)
    if settings.spans:
        from xopt.runtime.serve.tracing import Tracer  # needs an extra of its own

        tracer = Tracer(folder.path.name, with_texts=settings.spans == "texts")
        listeners.append(tracer.trace)
    return listeners


def _end_process() -> None:
    """Ask whatever server runs the application to end."""
    os.kill(os.getpid(), signal.SIGTERM)


async def _in_time(request: Request, queued: Coroutine[Any, Any, T], deadline_s: float) -> T:
    """Wait for queued as long as its client does and its time lasts, and then cancel it."""
    scored = asyncio.ensure_future(queued)
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


def _response(content: bytes, scored: Scored, milliseconds: int) -> Response:
    headers = {
        "x-compute-tokens": str(scored.tokens),
        "x-total-time": str(milliseconds),
    }
    if scored.warnings:  # not every shape has a place for them
        headers[WARNINGS_HEADER] = "; ".join(scored.warnings)
    if scored.count is not None:
        headers[SCORED_HEADER] = str(scored.count)
    return Response(content, media_type="application/json", headers=headers)


def _named(documents: list[int]) -> str:
    """Name documents by their index, the first of many."""
    rest = len(documents) - MOST_NAMED
    named = ", ".join(map(str, documents[:MOST_NAMED]))
    return f"documents {named}" + (f" and {rest} more" if rest > 0 else "")
