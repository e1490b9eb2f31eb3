"""What the server takes and gives, as OpenAPI 3.1, and a page that shows it."""

from __future__ import annotations

import html
from typing import Any

from xopt.runtime.machine import versions_here
from xopt.runtime.serve.shapes import PREDICT_PATHS, RERANK_PATHS, SCORE_PATHS

__all__ = ["described", "page"]

Json = dict[str, Any]
TEXT: Json = {"type": "string"}
TEXTS: Json = {"type": "array", "items": TEXT, "minItems": 1}
SCORE: Json = {"type": "number"}
INDEX: Json = {"type": "integer", "minimum": 0}
# Clients send options as null, and true and false as texts.
FLAG: Json = {"enum": [True, False, "true", "false", None]}
COUNT: Json = {"type": ["integer", "null"], "minimum": 0}
QUERY: Json = {"type": "string", "pattern": r"\S"}
DOCUMENT: Json = {
    "anyOf": [TEXT, {"type": "object", "properties": {"text": TEXT}, "required": ["text"]}]
}
DOCUMENTS: Json = {"type": "array", "items": DOCUMENT, "minItems": 1}


def _object(properties: Json, required: list[str]) -> Json:
    return {"type": "object", "properties": properties, "required": required}


ASKS: Json = {
    "Rerank": _object(
        {
            "query": QUERY,
            "documents": DOCUMENTS,
            "model": {"type": ["string", "null"]},
            "top_n": COUNT,
            "return_documents": FLAG,
            "raw_scores": FLAG,
        },
        ["query", "documents"],
    ),
    "RerankTexts": _object(
        {
            "query": QUERY,
            "texts": TEXTS,
            "top_n": COUNT,
            "raw_scores": FLAG,
            "return_text": FLAG,
            "truncate": FLAG,
        },
        ["query", "texts"],
    ),
    "Score": _object(
        {"text_1": {"anyOf": [TEXT, TEXTS]}, "text_2": {"anyOf": [TEXT, TEXTS]}},
        ["text_1", "text_2"],
    ),
    "Predict": _object(
        {
            "inputs": {
                "type": "array",
                "items": {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2},
                "minItems": 1,
            },
            "raw_scores": FLAG,
            "truncate": FLAG,
        },
        ["inputs"],
    ),
}
RESULT = _object({"index": INDEX, "relevance_score": SCORE, "document": {}}, [])
REPLIES: Json = {
    "Ranking": _object(
        {
            "id": TEXT,
            "object": TEXT,
            "model": TEXT,
            "results": {"type": "array", "items": RESULT},
            "data": {"type": "array", "items": RESULT},
            "usage": {"type": "object"},
            "meta": {"type": "object"},
        },
        [],
    ),
    "RankedTexts": {
        "type": "array",
        "items": _object({"index": INDEX, "score": SCORE, "text": TEXT}, ["index", "score"]),
    },
    "Scores": _object(
        {
            "data": {
                "type": "array",
                "items": _object({"index": INDEX, "score": SCORE}, ["index", "score"]),
            },
            "usage": {"type": "object"},
        },
        ["data"],
    ),
    "Predictions": {"type": "array"},
    "Error": {
        "type": "object",
        "properties": {"error": {}, "message": TEXT, "detail": TEXT, "error_type": TEXT},
        "required": ["error"],
    },
}
CASCADE: Json = {
    "name": "X-Cascade",
    "in": "header",
    "description": "Score few documents, as the model folder's cascade does, for top_n of them",
    "schema": {"enum": ["true", "false"]},
}
SCORED: Json = {
    "X-Scored": {
        "description": "How many documents were scored, where X-Cascade is true",
        "schema": INDEX,
    }
}
ERRORS = {
    "400": "No JSON, or nothing to rank",
    "401": "The API key is missing or wrong",
    "413": "The body is too large",
    "415": "The body is no JSON by its headers",
    "422": "A value is not what it should be",
    "424": "The model gives no document a finite score",
    "429": "Too much work is waiting; Retry-After says when to come again",
    "503": "Starting or ending",
    "504": "The time of the request is over",
}


def _named(*names: str) -> Json:
    schemas = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _content(*names: str) -> Json:
    return {"application/json": {"schema": _named(*names)}}


def _post(summary: str, asks: tuple[str, ...], replies: tuple[str, ...]) -> Json:
    responses: Json = {"200": {"description": "Scores", "content": _content(*replies)}}
    for status, description in ERRORS.items():
        responses[status] = {"description": description, "content": _content("Error")}
    body = {"required": True, "content": _content(*asks)}
    return {"post": {"summary": summary, "requestBody": body, "responses": responses}}


def _probe(summary: str, also: tuple[str, ...] = ()) -> Json:
    responses = {status: {"description": summary} for status in ("204", *also)}
    return {"get": {"summary": summary, "responses": responses}}


def _get(summary: str, media: str = "application/json", also: tuple[str, ...] = ()) -> Json:
    responses: Json = {}
    for status in ("200", *also):
        responses[status] = {"description": summary, "content": {media: {}}}
    return {"get": {"summary": summary, "responses": responses}}


def described() -> Json:
    """Return the OpenAPI document."""
    paths: Json = {}
    for path in RERANK_PATHS:
        asks = ("Rerank", "RerankTexts")
        paths[path] = _post("Rank documents for a query", asks, ("Ranking", "RankedTexts"))
        paths[path]["post"]["parameters"] = [CASCADE]
        paths[path]["post"]["responses"]["200"]["headers"] = SCORED
    for path in SCORE_PATHS:
        paths[path] = _post("Score pairs, in their order", ("Score",), ("Scores",))
    for path in PREDICT_PATHS:
        paths[path] = _post("Score pairs as TEI does", ("Predict",), ("Predictions",))
    paths["/"] |= _get("Alive")
    paths |= {
        "/health": _get("Alive"),
        "/ping": _get("Alive"),
        "/ready": _get("Ready for requests", also=("503",)),
        "/info": _get("Model, variant, agreement, cascade and limits"),
        "/metrics": _get("Counters for Prometheus", "text/plain"),
        "/v1/models": _get("The model"),
        "/.well-known/live": _probe("Alive, for Weaviate"),
        "/.well-known/ready": _probe("Ready for requests, for Weaviate", also=("503",)),
        "/meta": _get("The model, for Weaviate"),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "xopt", "version": versions_here().get("xopt-rerank", "0")},
        "paths": paths,
        "components": {
            "schemas": {**ASKS, **REPLIES},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


PAGE = """<!doctype html><meta charset="utf-8"><title>xopt serve</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}}
code{{background:#8882;padding:.1em .3em}}:root{{color-scheme:light dark}}</style>
<h1>xopt serve</h1>
<p>Everything below is in <a href="openapi.json">openapi.json</a>.</p>
{rows}
"""


def page() -> str:
    """Return a page of all paths, for people."""
    rows = []
    for path, methods in described()["paths"].items():
        for method, operation in methods.items():
            fields = ""
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                names = [each["$ref"].rsplit("/", 1)[1] for each in schema.get("anyOf", [schema])]
                asks = [", ".join(ASKS[name]["properties"]) for name in names]
                fields = f"<br>Body: {html.escape('; or '.join(asks))}"
            for header in operation.get("parameters", ()):
                fields += f"<br>Header: {html.escape(header['name'])}"
            summary = html.escape(operation["summary"])
            rows.append(f"<p><code>{method.upper()} {path}</code> {summary}{fields}</p>")
    return PAGE.format(rows="\n".join(rows))
