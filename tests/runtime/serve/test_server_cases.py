"""The cases in which the tests of other servers and of LiteLLM look, written anew."""

from __future__ import annotations

import pytest

QUERY = "Machine learning is"
DOCUMENTS = [
    "A machine is a physical system that uses power to apply forces and control movement.",
    "Learning is the process of acquiring new understanding, knowledge, behaviors, and skills.",
    "Machine learning is a field of study in artificial intelligence.",
    "Paris, capitale de la France, est une grande ville européenne.",
]


def ranking(client, path="/v1/rerank", **more):
    reply = client.post(path, json={"query": QUERY, "documents": DOCUMENTS, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


# llama.cpp


@pytest.mark.parametrize("path", ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"])
@pytest.mark.parametrize(("top_n", "expected"), [(None, 4), (2, 2), (4, 4), (99, 4)])
def test_as_many_come_back_as_were_asked_for(client, path, top_n, expected):
    more = {} if top_n is None else {"top_n": top_n}
    results = ranking(client, path, **more)["results"]
    assert len(results) == expected
    assert results == ranking(client, path)["results"][:expected]


@pytest.mark.parametrize("documents", [None, [], 123, [1, 2, 3], "a text", {"text": "a"}])
def test_documents_that_are_none_are_refused(client, documents):
    reply = client.post("/rerank", json={"query": QUERY, "documents": documents})
    assert reply.status_code in {400, 422}
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "documents" in error["message"]


@pytest.mark.parametrize("documents", [["a"], ["a", "a b"], DOCUMENTS])
def test_usage_counts_each_pair_whole(client, documents):
    usage = ranking(client, documents=documents)["usage"]
    alone = [ranking(client, documents=[each])["usage"] for each in documents]
    assert usage["prompt_tokens"] == sum(each["prompt_tokens"] for each in alone)
    assert usage["total_tokens"] == usage["prompt_tokens"] > 0


# Text Embeddings Inference


def tei(client, path="/rerank", status=200, **body):
    reply = client.post(path, json=body)
    assert reply.status_code == status, reply.text
    return reply.json()


def test_tei_ranks_the_best_first(client):
    results = tei(client, query=QUERY, texts=DOCUMENTS)
    assert sorted(each["index"] for each in results) == [0, 1, 2, 3]
    scores = [each["score"] for each in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert all("text" not in each for each in results)


def test_tei_gives_logits_and_texts_where_they_are_asked_for(client):
    plain = tei(client, query=QUERY, texts=DOCUMENTS)
    raw = tei(client, query=QUERY, texts=DOCUMENTS, raw_scores=True, return_text=True)
    assert [each["index"] for each in raw] == [each["index"] for each in plain]
    assert all(each["text"] == DOCUMENTS[each["index"]] for each in raw)
    assert [each["score"] for each in raw] != [each["score"] for each in plain]


@pytest.mark.parametrize("direction", ["right", "Right", "left"])
def test_tei_cuts_a_long_text(client, direction):
    body = {"query": QUERY, "texts": ["file " * 3000], "truncate": True}
    assert len(tei(client, **body, truncation_direction=direction)) == 1


def test_tei_takes_more_texts_than_its_own_limit(client):
    texts = [f"text {number}" for number in range(33)]
    assert len(tei(client, query=QUERY, texts=texts)) == 33


def test_tei_says_that_there_are_no_texts(client):
    assert tei(client, status=400, query=QUERY, texts=[])["error_type"] == "empty"
    assert tei(client, status=422, query=QUERY, texts=[1])["error_type"] == "validation"


def test_tei_predicts_one_pair_and_many(client):
    single = tei(client, "/predict", inputs=[QUERY, DOCUMENTS[0]])
    assert [sorted(each) for each in single] == [["label", "score"]]
    batch = tei(client, "/predict", inputs=[[QUERY, text] for text in DOCUMENTS])
    assert batch[0][0]["score"] == pytest.approx(single[0]["score"], abs=1e-6)
    by_rank = tei(client, query=QUERY, texts=DOCUMENTS)
    scores = {each["index"]: each["score"] for each in by_rank}
    for index, predictions in enumerate(batch):
        assert predictions[0]["score"] == pytest.approx(scores[index], abs=1e-6)


@pytest.mark.parametrize("inputs", [None, "one text", [["a"]], [["a", "b", "c"]], [["a", 1]]])
def test_tei_predicts_nothing_but_pairs(client, inputs):
    reply = tei(client, "/predict", status=422, inputs=inputs)
    assert reply["error_type"] == "validation"
    assert "inputs" in reply["error"]


# LiteLLM


def test_cohere_bills_and_counts(client):
    reply = ranking(client, "/v2/rerank", top_n=3, max_tokens_per_doc=None, priority=0)
    assert reply["id"]
    assert len(reply["results"]) == 3
    assert reply["meta"]["billed_units"]["search_units"] >= 0
    assert reply["meta"]["tokens"]["input_tokens"] > 0


def test_a_document_is_there_only_where_it_was_asked_for(client):
    results = ranking(client, return_documents=True)["results"]
    assert all(each["document"] == {"text": DOCUMENTS[each["index"]]} for each in results)
    for more in ({}, {"return_documents": False}, {"return_documents": None}):
        assert all("document" not in each for each in ranking(client, **more)["results"])


def test_documents_with_fields_rank_as_their_texts(client):
    as_objects = ranking(client, documents=[{"text": text} for text in DOCUMENTS])
    assert as_objects["results"] == ranking(client)["results"]


# What clients showed


def test_infinity_reads_its_own_object_and_texts(client):
    reply = ranking(client, "/rerank", raw_scores=False, return_documents=True)
    assert reply["object"] == "rerank"
    assert all(each["document"] == DOCUMENTS[each["index"]] for each in reply["results"])
    wrong = client.post("/rerank", json={"query": "", "documents": ["a"], "raw_scores": False})
    assert wrong.json()["detail"][0]["msg"] == wrong.json()["message"]


def test_voyage_gets_no_error_object(serve):
    body = {"query": QUERY, "documents": [], "top_k": None}
    with serve(api_keys=("right",)) as client:
        headers = {"authorization": "Bearer right"}
        replies = [
            client.post("/v1/rerank", json=body, headers=headers),
            client.post("/v1/rerank", json=body),
        ]
    assert [reply.status_code for reply in replies] == [400, 401]
    assert not any(isinstance(reply.json().get("error"), dict) for reply in replies)
    assert all(reply.json()["detail"] for reply in replies)


def test_xinference_finds_the_model_and_whether_it_needs_a_key(client, serve):
    for name in ("any", "BAAI/bge-reranker-base"):
        assert client.get(f"/v1/models/{name}").json()["model_type"] == "rerank"
    assert client.get("/v1/cluster/auth").json() == {"auth": False}
    with serve(api_keys=("right",)) as locked:
        assert locked.get("/v1/cluster/auth").json() == {"auth": True}
