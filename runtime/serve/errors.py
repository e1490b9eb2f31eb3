"""Answers errors in a body that every client can read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from xopt.runtime.errors import BadInput, NotFinite
from xopt.runtime.serve.engine import Closed, Overloaded, TimedOut
from xopt.runtime.serve.shapes import BadRequest

__all__ = ["FORMS", "error_reply"]

Body = dict[str, Any]

# What TEI's clients read beside the text of an error.
TEI_KINDS = {
    400: "empty",
    401: "unauthorized",
    413: "validation",
    415: "validation",
    422: "validation",
    429: "overloaded",
    503: "unhealthy",
    504: "overloaded",
}
STATUSES = {TimedOut: 504, Closed: 503, NotFinite: 424, BadInput: 422}
ELSEWHERE = {
    404: "there is no such path; POST /rerank ranks documents, and /docs has all paths",
    405: "this path does not take this method; /docs has all paths with theirs",
}


def error_reply(error: Exception, form: str = "common") -> Response:
    """Return the answer to a request that failed, in one of `FORMS`."""
    status, message, headers = _status(error)
    content = FORMS[form](status, message)
    return Response(orjson.dumps(content), status, headers, "application/json")


def _common(status: int, message: str) -> Body:
    """Each client finds the message where it looks: in `error`, `message` or `detail`."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    read_by_openai = {"message": message, "type": kind, "code": status, "param": None}
    return {"error": read_by_openai, "message": message, "detail": message}


def _tei(status: int, message: str) -> Body:
    return {"error": message, "error_type": TEI_KINDS.get(status, "backend")}


def _unread(status: int, message: str) -> Body:
    """Answer who is unknown, as no body was read: in `error` all clients can read a text."""
    return {**_tei(status, message), "message": message, "detail": message}


def _voyage(_: int, message: str) -> Body:
    """Voyage's client fails on an `error` that is an object."""
    return {"message": message, "detail": message}


def _infinity(status: int, message: str) -> Body:
    """Return the list of FastAPI, which infinity's client reads where a value is wrong."""
    content = _common(status, message)
    if status == 422:
        content["detail"] = [{"loc": ["body"], "msg": message, "type": "value_error"}]
    return content


FORMS: dict[str, Callable[[int, str], Body]] = {
    "common": _common,
    "tei": _tei,
    "unread": _unread,
    "voyage": _voyage,
    "infinity": _infinity,
}


def _status(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Return the status, the message and the headers of an error."""
    if isinstance(error, BadRequest):
        return error.status, str(error), {}
    if isinstance(error, HTTPException):
        message = ELSEWHERE.get(error.status_code, error.detail)
        return error.status_code, message, dict(error.headers or {})
    if isinstance(error, Overloaded):
        return 429, str(error), {"Retry-After": str(math.ceil(error.retry_s))}
    for kind, status in STATUSES.items():
        if isinstance(error, kind):
            return status, str(error), {}
    return 500, "an error in the server; its log says which", {}
