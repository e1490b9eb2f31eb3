"""What each client sends, and what it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.serve.shapes import BadRequest, Scored, shape_of

DOCUMENTS = ["the first", "the second", "the third"]
LOGITS = np.array([-1.0, 2.0, 0.5], np.float32)


def asked(path: str, body: dict[str, Any], logits: Any = LOGITS) -> Any:
    shape = shape_of(path, body)
    ask = shape.read(body)
    return shape.reply(ask, Scored(np.asarray(logits, np.float32), tokens=21))


def body_with(**more: Any) -> dict[str, Any]:
    return {"query": "which", "documents": DOCUMENTS, **more}


def indices(results: list[dict[str, Any]]) -> list[int]:
    return [each["index"] for each in results]


@pytest.mark.parametrize(
    "path", ["/rerank", "/v1/rerank", "/v2/rerank", "/v3/rerank", "/reranking", "/v1/reranking"]
)
def test_documents_are_ranked_on_every_path(path):
    results = asked(path, body_with(model="any"))["results"]
    assert indices(results) == [1, 2, 0]
    scores = [each["relevance_score"] for each in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert all("document" not in each for each in results)


def test_cohere_reads_its_versions_and_tokens():
    for path, version in (("/v1/rerank", "1"), ("/v2/rerank", "2")):
        reply = asked(path, body_with(model="rerank-v3.5", max_tokens_per_doc=None))
        assert reply["meta"]["api_version"] == {"version": version}
        assert reply["meta"]["tokens"]["input_tokens"] == reply["usage"]["total_tokens"] == 21
        assert "warnings" not in reply["meta"]


def test_tei_gets_a_bare_list_of_what_it_knows_and_no_more():
    body = {"query": "which", "texts": DOCUMENTS, "truncate": True}
    assert [sorted(each) for each in asked("/rerank", body)] == [["index", "score"]] * 3
    first = asked("/rerank", {**body, "return_text": True, "raw_scores": True})[0]
    assert first == {"index": 1, "score": 2.0, "text": "the second"}


def test_tei_predicts_a_pair_or_a_list_of_pairs():
    one = asked("/predict", {"inputs": ["a", "b"], "raw_scores": True}, [1.5])
    assert one == [{"score": 1.5, "label": "LABEL_0"}]
    many = asked("/predict", {"inputs": [["a", "b"], ["a", "c"]], "raw_scores": True}, [1.5, 2])
    assert [group[0]["score"] for group in many] == [1.5, 2.0]


def test_weaviate_gets_its_own_order():
    reply = asked("/rerank", body_with(property=""))
    assert [each["document"] for each in reply["scores"]] == DOCUMENTS


def test_voyage_reads_data_and_documents_as_texts():
    reply = asked("/v1/rerank", body_with(top_k=2, return_documents=True))
    assert indices(reply["data"]) == [1, 2]
    assert reply["data"][0]["document"] == "the second"
    assert reply["usage"] == {"total_tokens": 21}


def test_xinference_reads_a_text_or_null():
    sent = {"return_documents": "true", "return_len": "true"}
    assert asked("/v1/rerank", body_with(**sent))["results"][0]["document"] == "the second"
    sent["return_documents"] = "false"
    assert asked("/v1/rerank", body_with(**sent))["results"][0]["document"] is None


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_stay_in_their_order(path):
    reply = asked(path, {"text_1": "which", "text_2": DOCUMENTS, "use_activation": False})
    assert [each["score"] for each in reply["data"]] == LOGITS.tolist()
    pairs = shape_of(path, {}).read({"queries": ["a", "b"], "documents": ["c", "d"]}).pairs
    assert pairs == [("a", "c"), ("b", "d")]


@pytest.mark.parametrize(
    ("top_n", "expected"),
    [(None, 3), (0, 3), (1, 1), (3, 3), (99, 3), ("2", 2), (2.0, 2), (0.0, 3)],
)
def test_top_n_as_clients_send_it(top_n, expected):
    assert len(asked("/rerank", body_with(top_n=top_n))["results"]) == expected


@pytest.mark.parametrize("flag", [True, "true", "True", 1])
def test_documents_come_back_where_they_are_asked_for(flag):
    results = asked("/v1/rerank", body_with(return_documents=flag))["results"]
    assert results[0]["document"] == {"text": "the second"}


def test_documents_may_be_objects():
    documents = [{"text": text} for text in DOCUMENTS]
    assert indices(asked("/v1/rerank", body_with(documents=documents))["results"]) == [1, 2, 0]
    named = [{"title": "A", "text": "b"}]
    body = body_with(documents=named, rank_fields=["title", "text"])
    assert shape_of("/v1/rerank", body).read(body).pairs == [("which", "A\nb")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"documents": DOCUMENTS}, 422),
        ({"query": " ", "documents": DOCUMENTS}, 422),
        ({"query": 3, "documents": DOCUMENTS}, 422),
        ({"query": "a"}, 422),
        ({"query": "a", "documents": []}, 400),
        ({"query": "a", "documents": "b"}, 422),
        ({"query": "a", "documents": [1, 2]}, 422),
        ({"query": "a", "documents": [None]}, 422),
        ({"query": "a", "documents": [{"title": "b"}]}, 422),
        ({"query": "a", "documents": ["b"], "top_n": -1}, 422),
        ({"query": "a", "documents": ["b"], "top_n": 1.5}, 422),
        ({"query": "a", "documents": ["b"], "top_n": "²"}, 422),
        ({"query": "a", "documents": ["b"], "top_n": "9" * 50}, 422),
        ({"query": "a", "documents": ["b"], "return_documents": "perhaps"}, 422),
        ({"query": "a", "texts": []}, 400),
        ({"query": "a", "texts": [""] * 10_001}, 413),
    ],
)
def test_what_silence_would_hurt_is_refused(body, status):
    with pytest.raises(BadRequest) as refused:
        asked("/rerank", body)
    assert refused.value.status == status
    assert "send" in str(refused.value)


def test_ties_stay_in_the_order_of_the_documents():
    results = asked("/rerank", body_with(), [1.0, 1.0, 1.0])["results"]
    assert indices(results) == [0, 1, 2]


def test_a_score_that_is_not_finite_comes_last_and_is_a_number():
    for broken in (np.nan, np.inf, -np.inf):
        results = asked("/rerank", body_with(), [broken, 2.0, 0.5])["results"]
        assert indices(results) == [1, 2, 0]
        assert results[2]["relevance_score"] == results[1]["relevance_score"]


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20), st.booleans())
def test_a_ranking_is_that_of_the_logits(logits, raw):
    body = {"query": "q", "texts": ["t"] * len(logits), "raw_scores": raw}
    results = asked("/rerank", body, logits)
    assert sorted(indices(results)) == list(range(len(logits)))
    ordered = [np.float32(logits[index]) for index in indices(results)]
    assert ordered == sorted(ordered, reverse=True)
