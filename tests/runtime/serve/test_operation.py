"""What a server tells those who run it: its log, spans, and answers to browsers and probes."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import pytest

from xopt.cli.errors import OptionFormatter
from xopt.cli.logs import logged_as_json
from xopt.runtime.errors import BadInput

BODY = {"query": "how to copy a secret", "documents": ["secret " * 3000, "copies"], "top_n": 1}
SITE = "https://app.example.com"
STAGES = ["read", "tokenise", "queue_and_score", "reply"]


@contextmanager
def json_lines() -> Iterator[list[Any]]:
    """Yield a list that has, when the block ends, what was logged in it."""
    logger = logging.getLogger("xopt")
    handler = logging.StreamHandler()
    handler.setFormatter(OptionFormatter([]))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    lines: list[Any] = []
    with redirect_stderr(io.StringIO()) as written, logged_as_json():
        yield lines
    lines += [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_request_is_a_line_without_its_texts(serve):
    with json_lines() as lines, serve(log_requests=True) as client:
        assert client.post("/v1/rerank", json=BODY).status_code == 200
        assert client.post("/v1/rerank", json={"query": "secret"}).status_code == 422
        assert client.post("/nowhere", content="secret").status_code == 404
        assert client.get("/health").status_code == 200
    requests = [line for line in lines if "status" in line]
    assert "secret" not in json.dumps(requests)
    answered, refused, elsewhere = requests
    assert answered["time"].endswith("Z")
    assert (answered["level"], answered["message"]) == ("info", "POST /v1/rerank 200")
    assert (answered["method"], answered["path"]) == ("POST", "/v1/rerank")
    assert (answered["documents"], answered["cut"]) == (2, 1)
    assert answered["tokens"] > 64
    assert {f"{stage}_ms" for stage in STAGES} <= answered.keys()
    assert answered["ms"] >= int(answered["queue_and_score_ms"])
    assert (refused["status"], elsewhere["status"]) == (422, 404)
    assert "documents" not in refused


def test_an_unforeseen_error_is_one_line_with_its_traceback(serve, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    with json_lines() as lines, serve() as client:
        monkeypatch.setattr(client.engine, "admit", broken)
        assert client.post("/v1/rerank", json=BODY).status_code == 500
    failed = [line for line in lines if line["level"] == "error"]
    assert [line["message"] for line in failed] == ["a request failed"]
    assert failed[0]["traceback"].splitlines()[-1] == "ZeroDivisionError"


def test_what_others_warn_of_and_a_wrong_option_are_json_too():
    with json_lines() as lines:
        logging.getLogger("asyncio").warning("of a library: %d", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("of Python", UserWarning, stacklevel=1)
        with pytest.raises(SystemExit) as ended, logged_as_json():
            raise BadInput("a wrong\noption")
    assert ended.value.code == 2
    library, python, wrong = lines
    assert library["message"] == "of a library: 1"
    assert "of Python" in python["message"]
    assert (wrong["level"], wrong["message"]) == ("error", "a wrong option")


def test_without_an_origin_no_other_site_may_ask(client):
    reply = client.post("/v1/rerank", json=BODY, headers={"origin": SITE})
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("allowed", [SITE, "*"])
def test_a_page_of_a_site_may_ask(serve, allowed):
    asks = {
        "origin": SITE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-request-timeout",
    }
    with serve(cors_origins=("http://localhost:3000", allowed), api_keys=("one",)) as client:
        before = client.options("/v1/rerank", headers=asks)  # a browser sends no key with it
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] in {SITE, "*"}
        assert "authorization" in before.headers["access-control-allow-headers"].lower()
        for key, status in (("one", 200), ("none", 401)):
            headers = {"origin": SITE, "authorization": f"Bearer {key}"}
            reply = client.post("/v1/rerank", json=BODY, headers=headers)
            assert reply.status_code == status
            assert reply.headers["access-control-allow-origin"] in {SITE, "*"}
            readable = reply.headers["access-control-expose-headers"].lower()
            assert {"x-warnings", "retry-after", "x-compute-tokens"} <= set(readable.split(", "))
        assert client.options("/v1/rerank").status_code == 204


def test_a_site_that_is_not_named_may_not_ask(serve):
    asks = {"origin": "https://other.example.com", "access-control-request-method": "POST"}
    with serve(cors_origins=(SITE,)) as client:
        assert client.options("/v1/rerank", headers=asks).status_code == 400
        reply = client.post("/v1/rerank", json=BODY, headers=asks)
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("origin", [f"{SITE}/", "app.example.com", "HTTPS://app.example.com", ""])
def test_what_no_browser_sends_is_no_origin(serve, origin):
    with pytest.raises(BadInput, match="is no origin"), serve(cors_origins=(origin,)):
        pass


def test_the_probes_of_weaviate_are_answered(client, tiny):
    for path in ("/.well-known/live", "/.well-known/ready"):
        reply = client.get(path)
        assert (reply.status_code, reply.content) == (204, b"")
        assert client.head(path).status_code == 204
    assert client.get("/meta").json() == {"model": tiny.path.name, "variant": "onnx-fp32"}
    service = client.service
    service.ready = False
    try:
        assert client.get("/.well-known/ready").status_code == 503
        assert client.get("/.well-known/live").status_code == 204
    finally:
        service.ready = True


@pytest.fixture(scope="module")
def spans() -> Any:
    """What a process gets to export; its provider of spans is set once."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def test_a_span_goes_on_with_the_trace_of_the_client(serve, spans, tiny):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    spans.clear()
    with serve(spans="numbers") as client:
        client.post("/v1/rerank", json=BODY, headers={"traceparent": parent})
    *stages, span = spans.get_finished_spans()
    assert span.name == "POST /v1/rerank"
    assert f"{span.context.trace_id:032x}" == parent.split("-")[1]
    assert f"{span.parent.span_id:016x}" == parent.split("-")[2]
    assert span.attributes["openinference.span.kind"] == "RERANKER"
    assert span.attributes["reranker.model_name"] == tiny.path.name
    assert span.attributes["reranker.top_k"] == 1
    assert span.attributes["xopt.documents"] == 2
    assert span.attributes["xopt.cut"] == 1
    assert span.attributes["http.response.status_code"] == 200
    assert "secret" not in span.to_json()
    assert [stage.name for stage in stages] == STAGES
    for stage in stages:
        assert stage.parent.span_id == span.context.span_id
        assert span.start_time <= stage.start_time <= stage.end_time <= span.end_time


def test_texts_stand_in_a_span_only_where_they_are_asked_for(serve, spans):
    spans.clear()
    with serve(spans="texts") as client:
        best = client.post("/v1/rerank", json=BODY).json()["results"][0]
    attributes = spans.get_finished_spans()[-1].attributes
    assert attributes["reranker.query"] == BODY["query"]
    for index, text in enumerate(BODY["documents"]):
        assert attributes[f"reranker.input_documents.{index}.document.content"] == text
    first = "reranker.output_documents.0.document"
    assert attributes[f"{first}.id"] == str(best["index"])
    assert attributes[f"{first}.score"] == best["relevance_score"]
    assert attributes[f"{first}.content"] == BODY["documents"][best["index"]]
    assert "reranker.output_documents.1.document.id" not in attributes


def test_an_unforeseen_error_is_in_its_span(serve, spans, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    spans.clear()
    with serve(spans="numbers") as client:
        monkeypatch.setattr(client.engine, "admit", broken)
        client.post("/v1/rerank", json=BODY)
        client.post("/v1/rerank", json={})
    failed, refused = [span for span in spans.get_finished_spans() if span.name != "read"]
    assert failed.status.status_code.name == "ERROR"
    assert failed.events[0].attributes["exception.type"] == "ZeroDivisionError"
    assert refused.status.status_code.name == "UNSET"
    assert refused.attributes["http.response.status_code"] == 422
