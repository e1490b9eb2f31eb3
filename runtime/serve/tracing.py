"""A span for each request, in OpenTelemetry's words and OpenInference's for rerankers.

It is made when the request is answered. Nothing leaves the process unless somebody has given it a
provider of spans. Needs the extra `otel`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from xopt.runtime.serve.record import Record
from xopt.runtime.serve.shapes import Ask, Scored

__all__ = ["Tracer", "exported"]

Attributes = dict[str, str | int | float]
# A thousand documents with their scores; OpenTelemetry keeps 128 values otherwise.
MOST_ATTRIBUTES = "10000"


class Tracer:
    """Makes spans by the process's provider; with the texts of requests only where it is told."""

    def __init__(self, model: str, with_texts: bool) -> None:
        self.model = model
        self.with_texts = with_texts
        self.tracer = trace.get_tracer("xopt")

    def trace(self, record: Record) -> None:
        """Make the span of an answered request, with one below it for each stage.

        It continues the trace that the client's header `traceparent` names.
        """
        span = self.tracer.start_span(
            f"{record.method} {record.path}",
            propagate.extract(dict(record.request.headers)),
            SpanKind.SERVER,
            self._attributes(record),
            start_time=record.started_ns,
        )
        below = trace.set_span_in_context(span)
        for stage in record.stages:
            start_ns = _nanoseconds(record, stage.start_s)
            child = self.tracer.start_span(stage.name, below, start_time=start_ns)
            child.end(_nanoseconds(record, stage.end_s))
        if record.error is not None:
            span.record_exception(record.error)
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _attributes(self, record: Record) -> Attributes:
        attributes: Attributes = {}
        if self.with_texts and record.ask is not None:
            attributes |= _texts(record.ask)
            if record.scored is not None:
                attributes |= _ranking(record.ask, record.scored)
        attributes |= {
            "openinference.span.kind": "RERANKER",
            "reranker.model_name": self.model,
            "http.request.method": record.method,
            "http.response.status_code": record.status,
            "url.path": record.path,
            "xopt.cut": record.cut,
        }
        if record.ask is not None:
            documents = len(record.ask.pairs)
            attributes["reranker.top_k"] = record.ask.top_n or documents
            attributes["xopt.documents"] = documents
        if record.scored is not None:
            attributes["xopt.tokens"] = record.scored.tokens
        return attributes


def _nanoseconds(record: Record, at_s: float) -> int:
    return record.started_ns + round(1e9 * (at_s - record.started_s))


def _texts(ask: Ask) -> Attributes:
    attributes: Attributes = {"reranker.query": ask.pairs[0][0]}
    for index, (_, text) in enumerate(ask.pairs):
        attributes[f"reranker.input_documents.{index}.document.content"] = text
    return attributes


def _ranking(ask: Ask, scored: Scored) -> Attributes:
    attributes: Attributes = {}
    for rank, (index, score) in enumerate(scored.best(ask)):
        document = f"reranker.output_documents.{rank}.document"
        attributes[f"{document}.id"] = str(index)
        attributes[f"{document}.content"] = ask.pairs[index][1]
        attributes[f"{document}.score"] = score
    return attributes


@contextmanager
def exported() -> Iterator[None]:
    """Send spans by OTLP over HTTP to where the variables OTEL_* say, and the last at the end.

    `opentelemetry-instrument` and others may have given the process a provider; that one stays.
    """
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    os.environ.setdefault("OTEL_SERVICE_NAME", "xopt")
    os.environ.setdefault("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", MOST_ATTRIBUTES)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
