"""One server for many clients: scores, errors, load, and its end."""

from __future__ import annotations

import gzip
import json
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest
from helpers.tiny import make_tiny

from xopt.optimize.export import export
from xopt.runtime import open_scorer
from xopt.runtime.errors import BadInput
from xopt.runtime.serve.shapes import PATHS

QUERY = "how to copy a file"
TEXTS = ["shutil.copy(src, dst) copies a file.", "os.remove(path)", "", "file " * 3000]


def scores_of(client, texts, **more):
    body = {"query": QUERY, "texts": texts, "raw_scores": True, **more}
    results = client.post("/rerank", json=body).json()
    by_index = {each["index"]: each["score"] for each in results}
    return np.array([by_index[index] for index in range(len(texts))])


def test_scores_are_the_scorers(client, tiny):
    expected = open_scorer(tiny, "onnx-fp32").score([(QUERY, text) for text in TEXTS])
    assert np.abs(scores_of(client, TEXTS) - expected).max() < 1e-5


def test_of_several_labels_the_one_that_ranks_does(serve, tmp_path):
    model = str(make_tiny(tmp_path / "model", labels=3))
    folder = export(model, tmp_path / "difference", rank_label="2-0")
    logits = open_scorer(folder, "onnx-fp32").score([(QUERY, text) for text in TEXTS])
    with serve(folder) as client:
        assert np.abs(scores_of(client, TEXTS) - (logits[:, 2] - logits[:, 0])).max() < 1e-5
    unranked = replace(folder, manifest=replace(folder.manifest, rank_label=[]))
    with pytest.raises(BadInput, match="no one score to rank by"), serve(unranked):
        pass


def test_a_long_document_is_cut_and_named_and_fails_nobody(client):
    body = {"query": QUERY, "documents": TEXTS}
    reply = client.post("/v1/rerank", json=body).json()
    assert len(reply["results"]) == len(TEXTS)
    assert reply["meta"]["warnings"] == ["cut to 64 tokens with the query: documents 3"]
    texts = client.post("/rerank", json={"query": QUERY, "texts": TEXTS})
    assert texts.headers["x-warnings"] == reply["meta"]["warnings"][0]


def test_a_cut_is_refused_only_where_the_server_is_told_to(serve, client):
    body = {"query": QUERY, "texts": TEXTS, "truncate": False}
    assert client.post("/rerank", json=body).status_code == 200
    with serve(refuse_cut=True) as strict:
        refused = strict.post("/rerank", json=body)
        assert refused.status_code == 422
        assert "document 3 is longer" in refused.json()["error"]
        assert strict.post("/rerank", json={**body, "truncate": True}).status_code == 200


def test_many_clients_at_once_get_what_one_alone_gets(client):
    alone = scores_of(client, TEXTS)
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda _: scores_of(client, TEXTS), range(64)))
    assert max(np.abs(each - alone).max() for each in together) < 1e-5


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[1]", {}, 422),
        (b'{"query": "a", "documents": ["b"], "top_n": NaN}', {}, 400),
        (b'{"query": "a", "documents": ["\\ud800"]}', {}, 400),
        (b'{"query": "a", "documents": ["b"], "query": "c"}', {}, 422),
        (b'{"query": "a", "documents": [{"text": "b", "text": "c"}]}', {}, 422),
        pytest.param(b'{"top_n": ' + b"1" * 5000 + b"}", {}, 400, id="a number too long"),
        pytest.param(b"[" * 2000 + b"]" * 2000, {}, 400, id="lists too deep"),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-encoding": "br"}, 415),
        (b"no gzip", {"content-encoding": "gzip"}, 400),
        (gzip.compress(b'{"query": "a"}', mtime=0)[:-9], {"content-encoding": "gzip"}, 400),
    ],
)
def test_an_odd_body_is_an_error_that_clients_can_read(client, content, headers, status):
    headers = {"content-type": "application/json", **headers}
    reply = client.post("/v1/rerank", content=content, headers=headers)
    assert reply.status_code == status
    body = reply.json()
    assert body["error"] == body["message"] == body["detail"] != ""


def test_objects_may_be_deep(client):
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    reply = client.post("/v1/rerank", content=deep)
    assert reply.status_code == 422
    assert "query is missing" in reply.json()["message"]


def test_a_packed_body_is_read_and_a_bomb_is_not(client):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    good = gzip.compress(json.dumps({"query": QUERY, "documents": TEXTS}).encode())
    assert client.post("/v1/rerank", content=good, headers=headers).status_code == 200
    bomb = gzip.compress(b" " * (100 << 20))
    assert len(bomb) < 1 << 20
    assert client.post("/v1/rerank", content=bomb, headers=headers).status_code == 413


def test_a_key_opens_the_door(serve):
    body = {"query": QUERY, "documents": TEXTS[:1]}
    with serve(api_keys=("one", "two")) as client:
        assert client.post("/rerank", json=body).status_code == 401
        for given in ("Bearer two", "bearer one", "two", "BEARER  two"):
            headers = {"authorization": given}
            assert client.post("/rerank", json=body, headers=headers).status_code == 200
        for given in (b"Bearer no", b"", b"Bearer", b"Bearer tw\xc3\xb6"):
            headers = {b"authorization": given}
            wrong = client.post("/rerank", json=body, headers=headers)
            assert wrong.status_code == 401
        assert "API key" in wrong.json()["detail"]
        assert client.get("/health").status_code == 200


def test_too_much_waiting_work_is_refused_before_it_is_tokenised(serve):
    with serve(longest_wait_s=0.5) as client:
        before = client.engine.admit([(QUERY, "file " * 1000)] * 10, math.inf)
        client.engine.tokens_per_s = 1.0
        body = {"query": QUERY, "documents": TEXTS}
        refused = client.post("/v1/rerank", json=body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        client.engine.release(before)
        assert client.post("/v1/rerank", json=body).status_code == 200
        metrics = client.get("/metrics").text
        assert "xopt_refused_total 1.0" in metrics
        assert 'xopt_requests_total{status="429"} 1.0' in metrics
        assert 'xopt_requests_total{status="200"} 1.0' in metrics


def test_a_request_whose_time_is_over_is_told_so(client, held):
    body = {"query": QUERY, "documents": TEXTS}
    with held(client.engine.scorer):
        late = client.post("/v1/rerank", json=body, headers={"x-request-timeout": "0.1"})
        assert late.status_code == 504
        assert client.engine.queued_requests == 0
    assert client.post("/v1/rerank", json=body).status_code == 200
    for seconds in ("soon", "0", "-1", "nan", "inf"):
        headers = {"x-request-timeout": seconds}
        bad = client.post("/v1/rerank", json=body, headers=headers)
        assert bad.status_code == 400


@pytest.fixture
def tokenising_held(client, monkeypatch):
    """An event that all tokenising waits for."""
    tokenise = client.engine.tokenise
    released = threading.Event()

    def slowly(*arguments):
        assert released.wait(60)
        return tokenise(*arguments)

    monkeypatch.setattr(client.engine, "tokenise", slowly)
    return released


def test_time_that_tokenising_takes_counts(client, tokenising_held):
    # A large body is tokenised in a thread, which nobody waits for any longer.
    body = {"query": QUERY, "documents": ["file " * 10_000]}
    late = client.post("/v1/rerank", json=body, headers={"x-request-timeout": "0.2"})
    tokenising_held.set()
    assert late.status_code == 504


def test_a_query_that_is_long_for_each_document_holds_nobody_up(client, tokenising_held):
    body = {"query": "file " * 1000, "documents": ["a", "b", "c", "d"]}  # a small body
    with ThreadPoolExecutor(1) as clients:
        reply = clients.submit(client.post, "/v1/rerank", json=body)
        assert httpx.get(f"{client.base_url}/health").status_code == 200
        tokenising_held.set()
        assert reply.result().status_code == 200


def test_a_body_that_does_not_come_is_given_up(client):
    address = (client.base_url.host, client.base_url.port)
    head = "POST /v1/rerank HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\nx-request-timeout: 0.1\r\n"
    with socket.create_connection(address) as connection:
        connection.sendall(f"{head}\r\n{{".encode())
        reply = b"".join(iter(lambda: connection.recv(4096), b""))
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in reply


def test_bodies_together_have_a_limit(serve):
    body = {"query": QUERY, "documents": ["b"]}
    with serve(most_bytes=1000) as client:
        client.service.bodies.held_bytes = 3990
        assert client.post("/v1/rerank", json=body).status_code == 429
        assert client.service.bodies.held_bytes == 3990
        client.service.bodies.held_bytes = 0
        assert client.post("/v1/rerank", json=body).is_success


def test_a_client_that_leaves_is_forgotten(client, held):
    body = {"query": QUERY, "documents": [f"file {n}" for n in range(2000)]}
    with held(client.engine.scorer), pytest.raises(httpx.ReadTimeout):
        client.post("/v1/rerank", json=body, timeout=0.5)
    end_s = time.monotonic() + 30
    while client.engine.queued_requests:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert client.engine.queued_tokens == 0


def test_scores_that_are_not_finite_fail_no_neighbour(client, monkeypatch):
    run = client.engine.scorer.run
    body = {"query": QUERY, "documents": ["ranking query", "query ranking", "data index"]}
    expected = client.post("/v1/rerank", json=body).json()["results"]

    def broken(tokens, *arguments):
        logits = run(tokens, *arguments).copy()
        ids = client.engine.scorer.encode([(QUERY, "query ranking")]).ids[0]
        for row, each in enumerate(tokens.ids):
            if each.tolist() == ids.tolist():
                logits[row] = np.nan
        return logits

    monkeypatch.setattr(client.engine.scorer, "run", broken)
    reply = client.post("/v1/rerank", json=body).json()
    kept = [each for each in expected if each["index"] != 1]
    assert reply["results"][:2] == [
        {"index": each["index"], "relevance_score": pytest.approx(each["relevance_score"])}
        for each in kept
    ]
    assert reply["results"][2]["index"] == 1
    assert reply["meta"]["warnings"] == ["last, since their scores are not finite: documents 1"]
    alone = client.post("/v1/rerank", json={**body, "documents": ["query ranking"]})
    assert alone.status_code == 424
    assert "onnx-fp32" in alone.json()["message"]


STATE = (
    "/health",
    "/ready",
    "/ping",
    "/",
    "/info",
    "/meta",
    "/v1/models",
    "/metrics",
    "/openapi.json",
    "/docs",
)


@pytest.mark.parametrize("path", STATE)
def test_what_it_says_of_itself(client, path):
    for address in (path, f"{path}/"):
        assert client.get(address).status_code == 200
        assert client.head(address).status_code == 200
        assert client.options(address).status_code == 204


@pytest.mark.parametrize("path", PATHS)
def test_every_path_takes_a_slash_at_its_end(client, path):
    body = {
        "query": QUERY,
        "documents": TEXTS[:2],
        "inputs": [QUERY, TEXTS[0]],
        "text_1": QUERY,
        "text_2": TEXTS[:2],
    }
    for address in (path, f"{path}/"):
        reply = client.post(address, json=body, follow_redirects=False)
        assert reply.status_code == 200
    assert client.options(path).status_code == 204


def test_a_prefix_may_stand_before_a_path(serve, client):
    body = {"query": QUERY, "documents": TEXTS[:2]}
    assert client.post("/models/v1/rerank", json=body).status_code == 404
    with serve(root_path="/models/") as prefixed:
        for path in ("/models/v1/rerank", "/v1/rerank", "/models/v1/rerank/"):
            assert "results" in prefixed.post(path, json=body).json()
        assert prefixed.get("/models/health").status_code == 200
        assert prefixed.get("/modelshealth").status_code == 404


def test_a_wrong_path_or_method_is_an_error_that_clients_can_read(client):
    for reply, status in ((client.post("/rank"), 404), (client.get("/rerank"), 405)):
        assert reply.status_code == status
        assert "/docs" in reply.json()["error"]["message"]
    assert "POST" in client.get("/rerank").headers["allow"]


def test_an_error_in_the_server_is_no_secret(serve, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError

    with serve() as client:
        monkeypatch.setattr(client.engine, "admit", broken)
        reply = client.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS})
        assert reply.status_code == 500
        assert "log" in reply.json()["detail"]
        assert "connection" not in reply.headers  # the client goes on with this one
        assert client.get("/health").status_code == 200
    assert "ZeroDivisionError" in caplog.text


def test_info_has_the_limits(client, tiny):
    info = client.get("/info").json()
    assert info["max_input_length"] == tiny.manifest.max_length
    assert info["variant"] == "onnx-fp32"
    assert info["tokens_per_s"] > 0
    assert client.get("/v1/models").json()["data"][0]["id"] == tiny.path.name
