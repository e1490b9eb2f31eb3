"""One server for many clients: scores, errors, load, and its end."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from xopt.runtime import open_scorer
from xopt.runtime.serve.engine import Overloaded

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


def test_a_long_document_is_cut_and_named_and_fails_nobody(client):
    body = {"query": QUERY, "documents": TEXTS}
    reply = client.post("/v1/rerank", json=body).json()
    assert len(reply["results"]) == len(TEXTS)
    assert reply["meta"]["warnings"] == ["1 documents were cut to 64 tokens: 3"]


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
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-encoding": "br"}, 415),
        (b"no gzip", {"content-encoding": "gzip"}, 400),
        (gzip.compress(b'{"query": "a"}')[:-9], {"content-encoding": "gzip"}, 400),
    ],
)
def test_an_odd_body_is_an_error_that_clients_can_read(client, content, headers, status):
    headers = {"content-type": "application/json", **headers}
    reply = client.post("/v1/rerank", content=content, headers=headers)
    assert reply.status_code == status
    body = reply.json()
    assert body["error"]["message"] == body["message"] == body["detail"] != ""


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
        for given in ("Bearer two", "bearer one", "two"):
            headers = {"authorization": given}
            assert client.post("/rerank", json=body, headers=headers).status_code == 200
        wrong = client.post("/rerank", json=body, headers={"authorization": "Bearer no"})
        assert wrong.status_code == 401
        assert "API key" in wrong.json()["detail"]
        assert client.get("/health").status_code == 200


def test_too_much_waiting_work_is_refused_before_it_is_tokenised(serve):
    with serve(longest_wait_s=0.5) as client:
        engine = client.app.state.server.engine
        expected = engine.admit([(QUERY, "file " * 1000)] * 10, 60)
        engine.tokens_per_s = 1.0
        with pytest.raises(Overloaded):
            engine.admit([(QUERY, "file")], 60)
        body = {"query": QUERY, "documents": TEXTS}
        refused = client.post("/v1/rerank", json=body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        engine.release(expected)
        assert client.post("/v1/rerank", json=body).status_code == 200
        assert "xopt_refused_total 1.0" in client.get("/metrics").text


def test_a_request_whose_time_is_over_is_told_so(serve):
    with serve() as client:
        documents = [f"file {number} " * 50 for number in range(5000)]
        body = {"query": QUERY, "documents": documents}
        late = client.post("/v1/rerank", json=body, headers={"x-request-timeout": "0.3"})
        assert late.status_code == 504
        assert client.post("/rerank", json={"query": QUERY, "texts": ["a"]}).status_code == 200
        bad = client.post("/v1/rerank", json=body, headers={"x-request-timeout": "soon"})
        assert bad.status_code == 400


def test_a_client_that_leaves_is_not_computed_on(serve):
    with serve() as client:
        engine = client.app.state.server.engine
        body = {"query": QUERY, "documents": [f"file {n} " * 50 for n in range(20_000)]}
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/rerank", json=body, timeout=1.5)
        deadline_s = time.monotonic() + 30
        while engine.queued_tokens or engine.queued_requests:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert (engine.queued_tokens, engine.queued_requests) == (0, 0)


def test_small_requests_pass_between_the_forwards_of_a_large_one(serve):
    with serve() as client:
        large = {"query": QUERY, "documents": [f"file {n} " * 50 for n in range(20_000)]}
        ended = []

        def run_large() -> None:
            client.post("/v1/rerank", json=large)
            ended.append("large")

        thread = threading.Thread(target=run_large)
        thread.start()
        time.sleep(0.5)
        for _ in range(5):
            scores_of(client, TEXTS)
            ended.append("small")
        thread.join()
        assert ended == ["small"] * 5 + ["large"]


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/ready",
        "/ping",
        "/",
        "/info",
        "/v1/models",
        "/metrics",
        "/openapi.json",
        "/docs",
    ],
)
def test_what_it_says_of_itself(client, path):
    for address in (path, f"{path}/"):
        assert client.get(address).status_code in {200, 307}
    assert client.head(path).status_code == 200


def test_a_signal_ends_the_server_when_all_is_answered(tiny):
    command = [sys.executable, "-m", "xopt", "serve", str(tiny.path), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--variant", "onnx-fp32"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XOPT_API_KEY": ""},
    )
    try:
        line = next(line for line in process.stderr if "http://" in line)
        address = line.split()[-1]
        body = {"query": QUERY, "documents": [f"file {n} " * 50 for n in range(10_000)]}
        with ThreadPoolExecutor(4) as clients:
            replies = [
                clients.submit(httpx.post, f"{address}/v1/rerank", json=body, timeout=60)
                for _ in range(4)
            ]
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            assert httpx.get(f"{address}/ready").status_code == 503
            assert [reply.result().status_code for reply in replies] == [200] * 4
        assert process.wait(30) == 0
    finally:
        process.kill()
