"""What is known of one request: for the metrics, the log and a trace, which tell of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from starlette.requests import Request

from xopt.runtime.serve.metrics import Metrics
from xopt.runtime.serve.shapes import Ask, Scored, Shape

__all__ = ["Record", "Stage", "log_request"]

log = logging.getLogger(__name__)


class Stage(NamedTuple):
    """A part of a request's way, from when to when by time.monotonic."""

    name: str
    start_s: float
    end_s: float


@dataclass
class Record:
    """One request as it goes on its way; what it does not reach stays as it is here.

    started_ns: by the clock on the wall, as started_s is by time.monotonic.
    cut: how many documents were too long.
    error: what failed it where nobody foresaw that.
    """

    request: Request
    metrics: Metrics
    started_s: float = field(default_factory=time.monotonic)
    started_ns: int = field(default_factory=time.time_ns)
    stages: list[Stage] = field(default_factory=list)
    shape: Shape | None = None
    ask: Ask | None = None
    scored: Scored | None = None
    cut: int = 0
    status: int = 0
    error: Exception | None = None

    @property
    def method(self) -> str:
        return self.request.method

    @property
    def path(self) -> str:
        path: str = self.request.scope["path"]
        return path

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a part of the way, which counts when it does not fail."""
        start_s = time.monotonic()
        yield
        stage = Stage(name, start_s, time.monotonic())
        self.stages.append(stage)
        self.metrics.stage_s.labels(name).observe(stage.end_s - stage.start_s)

    def milliseconds(self) -> int:
        """Return how long it has taken so far."""
        return round(1000 * (time.monotonic() - self.started_s))


def log_request(record: Record) -> None:
    """Log a request by its numbers; nothing that its client wrote but the path."""
    fields: dict[str, object] = {
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "ms": record.milliseconds(),
    }
    if record.ask is not None:
        fields["documents"] = len(record.ask.pairs)
        fields["cut"] = record.cut
    if record.scored is not None:
        fields["tokens"] = record.scored.tokens
    for stage in record.stages:
        fields[f"{stage.name}_ms"] = round(1000 * (stage.end_s - stage.start_s), 1)
    log.info("%s %s %d", record.method, record.path, record.status, extra={"fields": fields})
