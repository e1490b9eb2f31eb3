"""Reads the body of a request: bounded, unpacked, and JSON without surprises."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import Counter
from typing import Any

import orjson
from starlette.requests import Request

from xopt.runtime.serve.engine import Overloaded
from xopt.runtime.serve.shapes import BadRequest

__all__ = ["LARGE_BYTES", "Bodies"]

Body = dict[str, Any]
# Bodies from here on are parsed and answered in a thread.
LARGE_BYTES = 1 << 15
# Of all requests together, so many times what one may have.
BODIES_HELD = 4


class Bodies:
    """Reads bodies, and bounds what those of all requests hold together."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0
        # A large body's JSON may take forty times its size, so one is parsed at a time.
        self._parsing = asyncio.Semaphore()

    async def read(self, request: Request) -> tuple[Body, int]:
        """Return a request's JSON object and its size in bytes.

        Raises BadRequest where it is larger than `most_bytes`, also when unpacked, or no JSON
        object. Raises Overloaded where others hold the memory for it.
        """
        _check_type(request)
        packed = bytearray()
        try:
            async for chunk in request.stream():
                packed += chunk
                self.held_bytes += len(chunk)
                if len(packed) > self.most_bytes:
                    raise _too_large(self.most_bytes)
                if self.held_bytes > BODIES_HELD * self.most_bytes:
                    raise Overloaded(retry_s=1)
            return await self._parsed(bytes(packed), request)
        finally:
            self.held_bytes -= len(packed)

    async def _parsed(self, data: bytes, request: Request) -> tuple[Body, int]:
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if encoding in {"gzip", "deflate"}:
            data = await asyncio.to_thread(_unpacked, data, self.most_bytes)
        elif encoding not in {"", "identity"}:
            raise BadRequest(f"content-encoding is {encoding:.80}; send gzip, or none", 415)
        if len(data) < LARGE_BYTES:
            return _parsed(data), len(data)
        async with self._parsing:
            return await asyncio.to_thread(_parsed, data), len(data)


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind and not kind.lower().endswith("json"):
        raise BadRequest(f"content-type is {kind:.80}; send application/json", 415)


def _too_large(most_bytes: int) -> BadRequest:
    return BadRequest(f"the body is larger than {most_bytes:,} bytes; send less at once", 413)


def _unpacked(packed: bytes, most_bytes: int) -> bytes:
    """Unpack no more than may be kept, whatever it would grow to."""
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, by its header
    try:
        data = unpacker.decompress(packed, most_bytes + 1)
    except zlib.error as error:
        raise BadRequest(f"the body cannot be unpacked ({error})", status=400) from error
    if len(data) > most_bytes:
        raise _too_large(most_bytes)
    if not unpacker.eof:
        raise BadRequest("the body ends before its gzip stream does", status=400)
    return data


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        orjson.loads(data)  # the stricter of the two; the other one shows keys that come twice
        body = json.loads(data, object_pairs_hook=_with_distinct_keys)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
        raise BadRequest(f"the body is no JSON: {error}", status=400) from error
    if not isinstance(body, dict):
        raise BadRequest('the body is no JSON object; send {"query": ..., "documents": [...]}')
    return body


def _with_distinct_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object. Which of two values a client meant, nobody can tell."""
    found = dict(items)
    if len(found) < len(items):
        counts = Counter(key for key, _ in items)
        twice = counts.most_common(1)[0][0]
        raise BadRequest(f"the body has the key {twice!r:.80} twice in one object; send it once")
    return found
