"""What the server takes and gives, as OpenAPI 3.1, and a page that shows it."""

from __future__ import annotations

import html
from typing import Any

from xopt.runtime.machine import versions_here
from xopt.runtime.serve.shapes import MOST_DOCUMENTS, PREDICT_PATHS, RERANK_PATHS, SCORE_PATHS

__all__ = ["described", "page"]

Json = dict[str, Any]
TEXT: Json = {"type": "string"}
TEXTS: Json = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MOST_DOCUMENTS}
PAIR: Json = {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2}
SCORE: Json = {"type": "number"}
INDEX: Json = {"type": "integer", "minimum": 0}
# Clients send options as null, and true and false as texts.
FLAG: Json = {"enum": [True, False, "true", "false", None]}
# Larger ones are no integers in JSON.
COUNT: Json = {"type": ["integer", "null"], "minimum": 0, "maximum": 2**53 - 1}
QUERY: Json = {"type": "string", "pattern": r"\S"}
DOCUMENT: Json = {
    "anyOf": [TEXT, {"type": "object", "properties": {"text": TEXT}, "required": ["text"]}]
}
DOCUMENTS: Json = {"type": "array", "items": DOCUMENT, "minItems": 1, "maxItems": MOST_DOCUMENTS}


def _object(properties: Json, required: list[str]) -> Json:
    return {"type": "object", "properties": properties, "required": required}


ASKS: Json = {
    "Rerank": _object(
        {
            "query": QUERY,
            "documents": DOCUMENTS,
            "model": {"type": ["string", "null"]},
            "top_n": COUNT,
            "top_k": COUNT,
            "return_documents": FLAG,
            "return_len": FLAG,
            "raw_scores": FLAG,
            "use_activation": FLAG,
            "truncation": FLAG,
            "property": TEXT,
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
        {"text_1": TEXT, "text_2": {"anyOf": [TEXT, TEXTS]}, "use_activation": FLAG},
        ["text_1", "text_2"],
    ),
    "Predict": _object(
        {
            "inputs": {
                "anyOf": [
                    PAIR,
                    {"type": "array", "items": PAIR, "minItems": 1, "maxItems": MOST_DOCUMENTS},
                ]
            },
            "raw_scores": FLAG,
            "truncate": FLAG,
        },
        ["inputs"],
    ),
}


def _reply(optional: Json | None = None, **required: Json) -> Json:
    """Describe an object with these keys and no others."""
    properties = {**required, **(optional or {})}
    return {**_object(properties, list(required)), "additionalProperties": False}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


COUNTED: Json = {"type": "integer", "minimum": 0}
TOTAL = _reply({"prompt_tokens": COUNTED}, total_tokens=COUNTED)
META = _reply(
    {"scored": COUNTED, "warnings": _list(TEXT)},
    api_version=_reply(version=TEXT),
    billed_units=_reply(search_units=COUNTED),
    tokens=_reply(input_tokens=COUNTED, output_tokens=COUNTED),
)
# A text, or an object with one, as the client knows it.
GIVEN_BACK: Json = {"anyOf": [{"type": ["string", "null"]}, _reply(text=TEXT)]}
RESULT = _reply({"document": GIVEN_BACK}, index=INDEX, relevance_score=SCORE)
PREDICTED = _list(_reply(score=SCORE, label=TEXT))
MODEL = _reply(id=TEXT, object=TEXT, created=COUNTED, owned_by=TEXT, model_type=TEXT)
OPENAI_ERROR = _reply(message=TEXT, type=TEXT, code=COUNTED, param={"type": "null"})
REPLIES: Json = {
    "Ranking": _reply(
        id=TEXT, object=TEXT, model=TEXT, results=_list(RESULT), usage=TOTAL, meta=META
    ),
    "RankingForVoyage": _reply(object=TEXT, data=_list(RESULT), model=TEXT, usage=TOTAL),
    "RankingForOpenVINO": _reply(results=_list(RESULT)),
    "ScoresForWeaviate": _reply(
        query=TEXT,
        scores=_list(_reply(document=TEXT, score=SCORE)),
        property=TEXT,
        score={"type": "null"},
    ),
    "RankedTexts": _list(_reply({"text": TEXT}, index=INDEX, score=SCORE)),
    "Scores": _reply(
        id=TEXT,
        object=TEXT,
        created=COUNTED,
        model=TEXT,
        data=_list(_reply(index=INDEX, object=TEXT, score=SCORE)),
        usage=TOTAL,
    ),
    "Predictions": {"anyOf": [PREDICTED, _list(PREDICTED)]},
    "Error": _reply(error=OPENAI_ERROR, message=TEXT, detail={"type": ["string", "array"]}),
    "ErrorForTEI": _reply(error=TEXT, error_type=TEXT),
    "ErrorForVoyage": _reply(message=TEXT, detail=TEXT),
    "ErrorUnread": _reply(error=TEXT, error_type=TEXT, message=TEXT, detail=TEXT),
    "Alive": _reply(status=TEXT),
    "Ready": _reply(ready={"type": "boolean"}),
    "Info": _object(
        {
            "model_id": TEXT,
            "variant": TEXT,
            "max_input_length": COUNTED,
            "max_body_bytes": COUNTED,
            "max_client_batch_size": COUNTED,
            "auto_truncate": {"type": "boolean"},
            "deadline_s": {"type": "number"},
            "agreement": {"type": "object"},
            "cascade": {"type": ["object", "null"]},
            "tokens_per_s": COUNTED,
        },
        ["model_id", "variant", "max_input_length", "max_body_bytes", "agreement"],
    ),
    "Models": _reply(object=TEXT, data=_list(MODEL)),
    "Model": MODEL,
    "Meta": _reply(model=TEXT, variant=TEXT),
    "AsksForKey": _reply(auth={"type": "boolean"}),
}
TIMEOUT: Json = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds that the request may take",
    "schema": {"type": "number", "minimum": 1},
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
RANKINGS = ("Ranking", "RankingForVoyage", "ScoresForWeaviate", "RankedTexts")
FAILURES = ("Error", "ErrorForTEI", "ErrorForVoyage", "ErrorUnread")
ERRORS = {
    "400": "No JSON, or nothing to rank",
    "401": "The API key is missing or wrong",
    "408": "The body did not come in time",
    "413": "The body is too large, or has too many documents",
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
        responses[status] = {"description": description, "content": _content(*FAILURES)}
    responses["429"]["headers"] = {"Retry-After": {"description": "Seconds", "schema": COUNTED}}
    body = {"required": True, "content": _content(*asks)}
    # Only a server that has keys asks for one.
    security: list[Json] = [{}, {"key": []}]
    return {
        "post": {
            "summary": summary,
            "requestBody": body,
            "parameters": [TIMEOUT],
            "responses": responses,
            "security": security,
        }
    }


def _probe(summary: str, also: tuple[str, ...] = ()) -> Json:
    responses = {status: {"description": summary} for status in ("204", *also)}
    return {"get": {"summary": summary, "responses": responses}}


def _get(summary: str, content: Json, also: tuple[str, ...] = ()) -> Json:
    responses: Json = {}
    for status in ("200", *also):
        responses[status] = {"description": summary, "content": content}
    return {"get": {"summary": summary, "responses": responses}}


def _named_get(summary: str, name: str) -> Json:
    """Describe a path that has a model's name at its end."""
    get = _get(summary, _content(name))
    parameter = {"name": "name", "in": "path", "required": True, "schema": TEXT}
    get["get"]["parameters"] = [parameter]
    return get


def described() -> Json:
    """Return the OpenAPI document."""
    paths: Json = {}
    for path in RERANK_PATHS:
        asks = ("Rerank", "RerankTexts")
        paths[path] = _post("Rank documents for a query", asks, RANKINGS)
    paths["/v3/rerank"] = _post(
        "Rank documents as OpenVINO Model Server does", ("Rerank",), ("RankingForOpenVINO",)
    )
    for path in RERANK_PATHS:
        paths[path]["post"]["parameters"] = [TIMEOUT, CASCADE]
        paths[path]["post"]["responses"]["200"]["headers"] = SCORED
    for path in SCORE_PATHS:
        paths[path] = _post("Score pairs, in their order", ("Score",), ("Scores",))
    for path in PREDICT_PATHS:
        paths[path] = _post("Score pairs as TEI does", ("Predict",), ("Predictions",))
    text: Json = {"schema": TEXT}
    paths["/"] |= _get("Alive", _content("Alive"))
    paths |= {
        "/health": _get("Alive", _content("Alive")),
        "/ping": _get("Alive", _content("Alive")),
        "/ready": _get("Ready for requests", _content("Ready"), also=("503",)),
        "/info": _get("Model, variant, agreement, cascade and limits", _content("Info")),
        "/metrics": _get("Counters for Prometheus", {"text/plain": text}),
        "/v1/models": _get("The model", _content("Models")),
        "/v1/models/{name}": _named_get("The model, by any name", "Model"),
        "/v1/cluster/auth": _get("Whether requests need a key", _content("AsksForKey")),
        "/docs": _get("This list as a page", {"text/html": text}),
        "/openapi.json": _get("This list as OpenAPI", {"application/json": {}}),
        "/.well-known/live": _probe("Alive, for Weaviate"),
        "/.well-known/ready": _probe("Ready for requests, for Weaviate", also=("503",)),
        "/meta": _get("The model, for Weaviate", _content("Meta")),
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
