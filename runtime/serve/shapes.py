"""The shapes in which clients ask, and in which they want the answer.

A request's path and the keys of its body say whose shape it is. They are those of Cohere, Jina,
vLLM, infinity, TEI, llama.cpp, Voyage, Xinference, Weaviate and OpenVINO Model Server. TEI is
Hugging Face's text-embeddings-inference. Each shape is a function from a body to an `Ask`, and one
from the scores to a reply.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.ranking import ranked

__all__ = ["MOST_DOCUMENTS", "PATHS", "VOYAGE", "Ask", "BadRequest", "Scored", "Shape", "shape_of"]

Body = dict[str, Any]
RERANK_PATHS = (
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/v3/rerank",
    "/reranking",
    "/v1/reranking",
    "/invocations",
    "/",
)
# Of one request, as Cohere has it.
MOST_DOCUMENTS = 10_000
SCORE_PATHS = ("/score", "/v1/score")
PREDICT_PATHS = ("/predict",)
PATHS = (*RERANK_PATHS, *SCORE_PATHS, *PREDICT_PATHS)


class BadRequest(Exception):
    """A request that cannot be answered, with what to send in its place."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Ask:
    """What a request asks for, whatever its shape.

    documents: the documents as they were sent, texts or objects; none of shapes without `top_n`.
    top_n: how many of the best documents to return, None for all.
    raw: logits in the place of scores between 0 and 1.
    with_texts: give each document's text back.
    refuses_cut: the client wants an error where a document is too long.
    groups: of TEI's /predict, whether the body was a list of pairs.
    """

    pairs: list[Pair]
    model: str
    documents: Sequence[Any] = ()
    top_n: int | None = None
    raw: bool = False
    with_texts: bool = False
    refuses_cut: bool = False
    groups: bool = False


@dataclass(frozen=True)
class Scored:
    """An ask's logits, float32[n], its tokens, and the warnings to say with them.

    count: how many were scored, where a cascade was asked for; the logits of others are NaN.
    """

    logits: NDArray[np.float32]
    tokens: int
    warnings: list[str] = field(default_factory=list)
    count: int | None = None

    @property
    def id(self) -> str:
        """Name the scores: equal ones have the same name, so that replies are the same bytes."""
        digest = hashlib.blake2b(self.logits.tobytes(), digest_size=16).digest()
        return str(uuid.UUID(bytes=digest, version=4))

    def best(self, ask: Ask) -> list[tuple[int, float]]:
        """Return the index and the score of the best documents; ties by index."""
        order, _ = ranked(np.where(np.isfinite(self.logits), self.logits, np.nan))
        values = self.values(ask.raw)
        return [(int(row), values[row]) for row in order[: ask.top_n]]

    def values(self, raw: bool) -> list[float]:
        """Return logits, or their sigmoids; the lowest one for what is not finite.

        One at least has to be finite.
        """
        finite = np.isfinite(self.logits)
        lowest = self.logits[finite].min()
        logits = np.where(finite, self.logits, lowest).astype(np.float64)
        values: list[float] = (logits if raw else _sigmoid(logits)).tolist()
        return values


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # No exp() of a large number, which would overflow.
    return np.exp(-np.logaddexp(0, -logits))


@dataclass(frozen=True)
class Shape:
    """How a client asks and what it reads: `read` a body, `reply` to it.

    errors: the form of its errors, one of `errors.FORMS`.
    """

    name: str
    read: Callable[[Body], Ask]
    reply: Callable[[Ask, Scored], Any]
    errors: str = "common"


def shape_of(path: str, body: Body) -> Shape:
    """Return whose shape a request has; keys tell where several share a path."""
    if path in BY_PATH:
        return BY_PATH[path]
    for key, shape in BY_KEY.items():
        if key in body:
            return shape
    if "top_k" in body and "top_n" not in body:
        return VOYAGE
    # Version 2 has no such option; others ask on this path, too.
    if path == "/v2/rerank" and "return_documents" not in body:
        return COHERE_2
    return COHERE


# Reading


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{name} is {_kind(value)}; send a text")
    return value


def _query(body: Body) -> str:
    query = body.get("query")
    if isinstance(query, dict):
        query = query.get("text")
    query = _text(query, "query")
    if not query.strip():
        raise BadRequest("query is empty; send a text")
    return query


def _documents(body: Body, name: str = "documents") -> list[Any]:
    documents = body.get(name)
    if not isinstance(documents, list):
        raise BadRequest(f"{name} is {_kind(documents)}; send a list of texts")
    _check_count(documents, name)
    return documents


def _check_count(values: list[Any], name: str) -> None:
    """Refuse none, and more than a client may send at once."""
    if not values:
        raise BadRequest(f"{name} is empty; send one text or more", status=400)
    if len(values) > MOST_DOCUMENTS:
        raise BadRequest(f"{name} has {len(values):,} texts; send {MOST_DOCUMENTS:,} at most", 413)


def _texts(documents: Sequence[Any], body: Body, name: str = "documents") -> list[str]:
    """Return the text of each document, which may be an object with fields."""
    fields = _listed(body.get("rank_fields") or ["text"], "rank_fields")
    texts = []
    for number, document in enumerate(documents):
        place = f"{name}[{number}]"
        found = [document]
        if isinstance(document, dict):
            found = [document[key] for key in fields if key in document]
        if not found:
            raise BadRequest(f"{place} has no {fields[0]!r}; send a text")
        texts.append("\n".join(_text(value, place) for value in found))
    return texts


def _kind(value: Any) -> str:
    """Name a JSON value for a message."""
    if value is None:
        return "missing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def _flag(body: Body, name: str, default: bool = False) -> bool:
    """Return an option that clients send as true, "true", 1 or null."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if isinstance(value, (bool, int)):
        return bool(value)
    raise BadRequest(f"{name} is {value!r:.80}; send true or false")


def _count(body: Body, name: str) -> int | None:
    """Return how many documents to return; None, as 0 is read, for all."""
    value = body.get(name)
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # 2.0 is whole in JSON
        value = int(value)
    if value is None or value is False or value == 0:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequest(
            f"{name} is {value!r:.80}; send a whole number from 1, or leave it out for all"
        )
    return value


def _model(body: Body) -> str:
    model = body.get("model")
    return model if isinstance(model, str) else ""


def _rerank_ask(body: Body, top: str = "top_n") -> Ask:
    query = _query(body)
    documents = _documents(body)
    return Ask(
        pairs=[(query, text) for text in _texts(documents, body)],
        model=_model(body),
        documents=documents,
        top_n=_count(body, top),
        raw=_flag(body, "raw_scores") or not _flag(body, "use_activation", default=True),
        with_texts=_flag(body, "return_documents"),
    )


def _voyage_ask(body: Body) -> Ask:
    ask = _rerank_ask(body, top="top_k")
    refuses_cut = not _flag(body, "truncation", default=True)
    return replace(ask, raw=False, refuses_cut=refuses_cut)


def _weaviate_ask(body: Body) -> Ask:
    return replace(_rerank_ask(body), top_n=None)  # its reply has all


def _tei_ask(body: Body) -> Ask:
    query = _query(body)
    documents = _documents(body, "texts")
    return Ask(
        pairs=[(query, text) for text in _texts(documents, body, "texts")],
        model=_model(body),
        documents=documents,
        top_n=_count(body, "top_n"),
        raw=_flag(body, "raw_scores"),
        with_texts=_flag(body, "return_text"),
        refuses_cut=not _flag(body, "truncate", default=True),
    )


def _predict_ask(body: Body) -> Ask:
    inputs = body.get("inputs")
    if not isinstance(inputs, list):
        raise BadRequest(f"inputs is {_kind(inputs)}; send a pair, or a list of pairs")
    _check_count(inputs, "inputs")
    groups = isinstance(inputs[0], list)
    pairs = []
    for number, each in enumerate(inputs if groups else [inputs]):
        if not isinstance(each, list) or len(each) != 2:
            raise BadRequest(f"inputs[{number}] is no pair; send [query, document]")
        query, text = (_text(value, f"inputs[{number}]") for value in each)
        pairs.append((query, text))
    refuses_cut = not _flag(body, "truncate", default=True)
    raw = _flag(body, "raw_scores")
    return Ask(pairs, _model(body), raw=raw, refuses_cut=refuses_cut, groups=groups)


def _score_ask(body: Body) -> Ask:
    names = (
        ("queries", "documents"),
        ("queries", "items"),
        ("data_1", "data_2"),
        ("text_1", "text_2"),
    )
    for first, second in names:
        if first in body and second in body:
            break
    else:
        raise BadRequest("send text_1 and text_2: one query, and the texts to score for it")
    queries = _listed(body[first], first)
    texts = _listed(body[second], second)
    if len(queries) == 1:
        queries = queries * len(texts)
    if len(queries) != len(texts):
        raise BadRequest(
            f"{first} has {len(queries)} texts and {second} {len(texts)}; send one "
            f"text in {first}, or as many in both"
        )
    raw = not _flag(body, "use_activation", default=True)
    return Ask(list(zip(queries, texts, strict=True)), _model(body), raw=raw)


def _listed(value: Any, name: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    _check_count(values, name)
    return [_text(each, f"{name}[{number}]") for number, each in enumerate(values)]


# Replying


def _usage(scored: Scored) -> Body:
    return {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens}


def _meta(scored: Scored, version: str) -> Body:
    meta: Body = {
        "api_version": {"version": version},
        "billed_units": {"search_units": 0},
        "tokens": {"input_tokens": scored.tokens, "output_tokens": 0},
    }
    if scored.count is not None:
        meta["scored"] = scored.count
    if scored.warnings:
        meta["warnings"] = scored.warnings
    return meta


def _results(ask: Ask, scored: Scored, as_text: bool = False) -> list[Body]:
    results = []
    for index, score in scored.best(ask):
        result: Body = {"index": index, "relevance_score": score}
        if ask.with_texts:
            text = ask.pairs[index][1]
            result["document"] = text if as_text else {"text": text}
        results.append(result)
    return results


def _cohere_reply(ask: Ask, scored: Scored, version: str = "1") -> Body:
    return {
        "id": scored.id,
        "object": "list",
        "model": ask.model,
        "results": _results(ask, scored),
        "usage": _usage(scored),
        "meta": _meta(scored, version),
    }


def _cohere_2_reply(ask: Ask, scored: Scored) -> Body:
    return _cohere_reply(ask, scored, "2")


def _infinity_reply(ask: Ask, scored: Scored) -> Body:
    results = _results(ask, scored, as_text=True)
    return {**_cohere_reply(ask, scored), "object": "rerank", "results": results}


def _xinference_reply(ask: Ask, scored: Scored) -> Body:
    results = [{"document": None, **each} for each in _results(ask, scored, as_text=True)]
    return {**_cohere_reply(ask, scored), "results": results}


def _voyage_reply(ask: Ask, scored: Scored) -> Body:
    return {
        "object": "list",
        "data": _results(ask, scored, as_text=True),
        "model": ask.model,
        "usage": {"total_tokens": scored.tokens},
    }


def _openvino_reply(ask: Ask, scored: Scored) -> Body:
    return {"results": _results(ask, scored)}


def _weaviate_reply(ask: Ask, scored: Scored) -> Body:
    values = scored.values(ask.raw)
    scores = [
        {"document": text, "score": value}
        for (_, text), value in zip(ask.pairs, values, strict=True)
    ]
    return {"query": ask.pairs[0][0], "scores": scores, "property": "", "score": None}


def _tei_reply(ask: Ask, scored: Scored) -> list[Body]:
    results = []
    for index, score in scored.best(ask):
        result: Body = {"index": index, "score": score}
        if ask.with_texts:
            result["text"] = ask.pairs[index][1]
        results.append(result)
    return results


def _predict_reply(ask: Ask, scored: Scored) -> list[Any]:
    groups = [[{"score": value, "label": "LABEL_0"}] for value in scored.values(ask.raw)]
    return groups if ask.groups else groups[0]


def _score_reply(ask: Ask, scored: Scored) -> Body:
    data = [
        {"index": index, "object": "score", "score": value}
        for index, value in enumerate(scored.values(ask.raw))
    ]
    return {
        "id": f"score-{scored.id}",
        "object": "list",
        "created": int(time.time()),
        "model": ask.model,
        "data": data,
        "usage": _usage(scored),
    }


COHERE = Shape("cohere, jina, vllm, llama.cpp", _rerank_ask, _cohere_reply)
COHERE_2 = Shape("cohere v2", _rerank_ask, _cohere_2_reply)
INFINITY = Shape("infinity", _rerank_ask, _infinity_reply, errors="infinity")
XINFERENCE = Shape("xinference", _rerank_ask, _xinference_reply)
VOYAGE = Shape("voyage", _voyage_ask, _voyage_reply, errors="voyage")
OPENVINO = Shape("openvino", _rerank_ask, _openvino_reply)
WEAVIATE = Shape("weaviate", _weaviate_ask, _weaviate_reply)
TEI = Shape("tei", _tei_ask, _tei_reply, errors="tei")
PREDICT = Shape("tei /predict", _predict_ask, _predict_reply, errors="tei")
SCORE = Shape("vllm /score", _score_ask, _score_reply)

BY_PATH = {
    **dict.fromkeys(SCORE_PATHS, SCORE),
    **dict.fromkeys(PREDICT_PATHS, PREDICT),
    "/v3/rerank": OPENVINO,
}
# infinity's own client always sends `raw_scores`.
BY_KEY = {
    "texts": TEI,
    "property": WEAVIATE,
    "return_len": XINFERENCE,
    "raw_scores": INFINITY,
}
