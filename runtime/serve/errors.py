"""Answers errors in a body that every client can read."""

from __future__ import annotations

import math
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from xopt.runtime.errors import BadInput, NotFinite
from xopt.runtime.serve.engine import Closed, Overloaded, TimedOut
from xopt.runtime.serve.shapes import BadRequest

__all__ = ["error_reply"]

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


def error_reply(error: Exception, as_tei: bool) -> Response:
    """Return the answer to a request that failed, in TEI's form or in one for all others."""
    status, message, headers = _status(error)
    if as_tei:
        content: Any = {"error": message, "error_type": TEI_KINDS.get(status, "backend")}
    else:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        read_by_openai = {"message": message, "type": kind, "code": status, "param": None}
        content = {"error": read_by_openai, "message": message, "detail": message}
    return Response(orjson.dumps(content), status, headers, "application/json")


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
