"""A cascade over HTTP: what it scores, what it says of that, and what it refuses."""

from __future__ import annotations

import re
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from xopt.optimize.cascade.certify import certify
from xopt.optimize.cascade.parts import candidate_lists
from xopt.runtime import open_cascade
from xopt.runtime.cascade.cascade import Cascade
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder

ASKED = {"X-Cascade": "true"}


@pytest.fixture(scope="module")
def folder(certified, tmp_path_factory) -> ModelFolder:
    """A folder with a cascade whose rule takes one block for some queries, two for others."""
    rule = {"kind": "gain", "value": 0.35}
    return changed(certified[0], tmp_path_factory.mktemp("rule"), rule=rule)


@pytest.fixture(scope="module")
def cascading(serve, folder):
    """A client of a server of the variant that the cascade was certified with."""
    with serve(folder, variant="onnx-int8") as client:
        yield client


@pytest.fixture(scope="module")
def lists(unseen):
    return candidate_lists(unseen)


def counted(client):
    text = client.get("/metrics").text
    found = re.findall(r'^xopt_cascade_pairs_total\{outcome="(\w+)"\} (\S+)', text, re.MULTILINE)
    values = {outcome: float(value) for outcome, value in found}
    return [values.get("scored", 0), values.get("skipped", 0)]


def changed(folder: ModelFolder, place, **values) -> ModelFolder:
    """A copy of a folder whose cascade has other values."""
    copy = ModelFolder.open(shutil.copytree(folder.path, place / "changed-xopt"))
    cascade = {**copy.manifest.cascade, **values}
    copy.write(lambda manifest: replace(manifest, cascade=cascade))
    return ModelFolder.open(copy.path)


def test_it_ranks_as_the_cascade_does_offline(cascading, folder, lists):
    found = open_cascade(folder).rank_all(lists)
    scored, skipped = counted(cascading)
    counts = set()
    for query, documents, expected in zip(lists.queries, lists.documents, found, strict=True):
        body = {"query": query, "documents": documents, "top_n": 8, "raw_scores": True}
        reply = cascading.post("/v1/rerank", json=body, headers=ASKED)
        results = reply.json()["results"]
        assert [each["index"] for each in results] == expected.ranking[:8].tolist()
        scores = expected.scores[expected.ranking[:8]]
        assert [each["relevance_score"] for each in results] == pytest.approx(scores, abs=1e-4)
        count = int(np.isfinite(expected.scores).sum())
        assert reply.json()["meta"]["scored"] == int(reply.headers["x-scored"]) == count
        counts.add(count)
        scored += count
        skipped += 25 - count
    assert counts == {10, 18}  # of one block and of two
    assert counted(cascading) == [scored, skipped]


@pytest.mark.parametrize(
    ("more", "results", "why"),
    [
        ({}, 25, "all were scored: top_n is not smaller"),
        ({"top_n": 25}, 25, "all were scored: top_n is not smaller"),
        ({"top_n": 11}, 11, "all were scored: the best 11 are asked for; its certificate is of 10"),
    ],
)
def test_all_are_scored_where_the_certificate_says_nothing(cascading, lists, more, results, why):
    body = {"query": lists.queries[0], "documents": lists.documents[0], **more}
    reply = cascading.post("/v1/rerank", json=body, headers=ASKED)
    assert reply.headers["x-scored"] == "25"
    assert why in reply.headers["x-warnings"]
    assert reply.json()["meta"]["scored"] == 25
    plain = cascading.post("/v1/rerank", json=body)
    assert reply.json()["results"] == plain.json()["results"]
    assert len(plain.json()["results"]) == results


def test_only_who_asks_gets_it(cascading, lists):
    body = {"query": lists.queries[0], "documents": lists.documents[0], "top_n": 3}
    for headers in ({}, {"X-Cascade": "false"}):
        reply = cascading.post("/v1/rerank", json=body, headers=headers)
        assert "x-scored" not in reply.headers
        assert "scored" not in reply.json()["meta"]
    odd = cascading.post("/v1/rerank", json=body, headers={"X-Cascade": "yes"})
    assert odd.status_code == 400
    assert "X-Cascade is 'yes'; send true or false" in odd.json()["message"]


def test_every_shape_may_ask(cascading, lists):
    query = lists.queries[0]
    texts = lists.documents[0]
    body = {"query": query, "documents": texts, "top_n": 3}
    ranked = cascading.post("/v1/rerank", json=body, headers=ASKED)
    best = [each["index"] for each in ranked.json()["results"]]
    tei = {"query": query, "texts": texts, "top_n": 3}
    voyage = {"query": query, "documents": texts, "top_k": 3}
    for path, asked, read in (
        ("/rerank", tei, lambda reply: reply),
        ("/v1/rerank", voyage, lambda reply: reply["data"]),
        ("/v3/rerank", body, lambda reply: reply["results"]),
    ):
        reply = cascading.post(path, json=asked, headers=ASKED)
        assert [each["index"] for each in read(reply.json())] == best
        assert reply.headers["x-scored"] == ranked.headers["x-scored"]
    weaviate = cascading.post("/rerank", json={**body, "property": ""}, headers=ASKED)
    assert weaviate.headers["x-scored"] == "25"  # it gets all of them
    assert len(weaviate.json()["scores"]) == 25


def test_documents_that_are_cut_are_named_if_they_are_scored(cascading, serve, folder, lists):
    texts = [f"{text} {'copies a file ' * 100}" for text in lists.documents[0]]
    body = {"query": lists.queries[0], "texts": texts, "top_n": 3, "truncate": False}
    reply = cascading.post("/rerank", json=body, headers=ASKED)
    named = reply.headers["x-warnings"].partition("documents ")[2].split(", ")
    assert len(named) == int(reply.headers["x-scored"]) < 25
    with serve(folder, variant="onnx-int8", refuse_cut=True) as client:
        assert client.post("/rerank", json=body, headers=ASKED).status_code == 422


def test_more_are_scored_for_those_that_are_not_finite(cascading, lists, monkeypatch):
    run = cascading.engine.scorer.run
    lock = threading.Lock()
    left = ["to break"] * 10  # as many as the first block has

    def breaking(*arguments):
        logits = run(*arguments)
        with lock:
            broken = min(len(left), len(logits))
            del left[:broken]
        logits[:broken] = np.nan
        return logits

    monkeypatch.setattr(cascading.engine.scorer, "run", breaking)
    body = {"query": lists.queries[0], "documents": lists.documents[0], "top_n": 9}
    reply = cascading.post("/v1/rerank", json=body, headers=ASKED)
    best = [each["index"] for each in reply.json()["results"]]
    warning = reply.headers["x-warnings"].partition("last, since their scores are not finite: ")[2]
    last = [int(index) for index in re.findall(r"\d+", warning)]
    assert (len(best), len(last), set(best) & set(last)) == (9, 10, set())
    assert int(reply.headers["x-scored"]) >= 19


def test_it_ends_with_the_time_of_its_request(cascading, lists, held):
    body = {"query": lists.queries[0], "documents": lists.documents[0], "top_n": 3}
    with held(cascading.engine.scorer) as began:
        in_time = {**ASKED, "X-Request-Timeout": "1"}
        late = cascading.post("/rerank", json=body, headers=in_time)
        assert began.acquire(timeout=30)
    assert late.status_code == 504
    assert cascading.engine.queued_requests == 0
    assert cascading.post("/rerank", json=body, headers=ASKED).status_code == 200


def test_what_its_certificate_promises_stands_in_info(cascading, client, folder):
    certificate = Cascade.of(folder).certificate
    told = cascading.get("/info").json()["cascade"]
    for name in ("measure", "top", "max_loss", "confidence", "queries", "column"):
        assert told[name] == getattr(certificate, name)
    assert (told["variant"], told["refused"]) == ("onnx-int8", None)
    assert client.get("/info").json()["cascade"] is None


def test_without_a_cascade_it_is_refused(client, lists):
    body = {"query": lists.queries[0], "texts": lists.documents[0], "top_n": 3}
    reply = client.post("/rerank", json=body, headers=ASKED)
    assert reply.status_code == 422
    assert "has no cascade; leave X-Cascade out, or make one" in reply.json()["error"]


@pytest.mark.parametrize(
    ("values", "variant", "why"),
    [
        ({}, "onnx-fp32", "certified with onnx-int8, and onnx-fp32 is served"),
        ({"rule": {}}, "onnx-int8", "cannot be opened, and the server's log says why"),
        (
            {"order": {"kind": "model"}},
            "onnx-int8",
            "goes by a cheaper model, which no server runs",
        ),
    ],
)
def test_a_cascade_that_is_not_served_is_refused(
    serve, folder, lists, tmp_path, values, variant, why
):
    if "order" in values:
        values = {"order": {**folder.manifest.cascade["order"], **values["order"]}}
    other = changed(folder, tmp_path, **values)
    body = {"query": lists.queries[0], "texts": lists.documents[0], "top_n": 3}
    with serve(other, variant=variant) as client:
        reply = client.post("/rerank", json=body, headers=ASKED)
        assert reply.status_code == 422
        assert why in reply.json()["error"]
        told = client.get("/info").json()["cascade"]
        assert told is None or told["refused"] == reply.json()["error"]
        assert client.post("/rerank", json=body).status_code == 200


def test_first_stage_scores_are_fields_of_documents(serve, tiny_copy, queries, lists):
    rows = [replace(row, first_score=-float(i % 25)) for i, row in enumerate(queries.rows)]
    scored = Candidates("scored", tuple(rows))
    how = {"first": "given", "column": "bm25", "max_loss": 0.5, "confidence": 0.8}
    assert certify(tiny_copy, scored, "onnx-int8", **how).cascade
    scorer = open_cascade(tiny_copy.path)
    texts = lists.documents[0]
    scores = [float(i * 7 % 25) for i in range(25)]
    expected = scorer.rank(lists.queries[0], texts, top_k=3, first_scores=scores)
    objects = [{"text": text, "bm25": s} for text, s in zip(texts, scores, strict=True)]
    body = {"query": lists.queries[0], "documents": objects, "top_n": 3}
    with serve(ModelFolder.open(tiny_copy.path), variant="onnx-int8") as client:
        reply = client.post("/rerank", json=body, headers=ASKED)
        found = [each["index"] for each in reply.json()["results"]]
        assert found == [each["corpus_id"] for each in expected]
        assert int(reply.headers["x-scored"]) < 25
        for odd in ("no score", {"text": "none"}, {"text": "a text", "bm25": "7"}):
            body["documents"] = [*objects[:4], odd, *objects[5:]]
            refused = client.post("/rerank", json=body, headers=ASKED)
            assert refused.status_code == 422
            assert "document 4 has no number 'bm25'" in refused.json()["message"]
            assert client.post("/rerank", json=body).status_code == 200


def test_it_warns_of_many_more_documents_than_were_certified(cascading, lists):
    texts = [f"{text} {turn}" for turn in range(3) for text in lists.documents[0]]
    body = {"query": lists.queries[0], "texts": texts, "top_n": 3}
    reply = cascading.post("/rerank", json=body, headers=ASKED)
    assert "75 candidates of a query; its certificate is of 25" in reply.headers["x-warnings"]
