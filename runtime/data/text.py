"""Rows of JSON lines, CSV and TSV files, each with where it stands."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from xopt.runtime.data.places import Place
from xopt.runtime.errors import BadInput

__all__ = ["READERS", "Row", "open_text", "read_jsonl", "read_rows", "readable"]

Row = tuple[str, dict[str, Any]]  # where a row stands, for messages, and its values by column
GZIP = b"\x1f\x8b"


def read_rows(name: str, place: Place) -> Iterator[Row]:
    """Read the rows of a file, whose kind its name tells.

    Raises BadInput where it is damaged, in another encoding, or no file of its kind.
    """
    kind = name.lower().removesuffix(".gz")
    suffix = next(suffix for suffix in READERS if kind.endswith(suffix))
    with readable(name):
        yield from READERS[suffix](name, place)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Raises BadInput where a file cannot be read, is damaged, or is not in UTF-8."""
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(
            f"{name}: cannot be read ({error}); files are text in UTF-8, gzipped or not"
        ) from error


@contextmanager
def open_text(place: Place, newline: str | None = "\n") -> Iterator[TextIO]:
    """Open a text file in UTF-8, with or without a byte-order mark.

    Whether it is gzipped its content tells, not its name.
    """
    with place.open() as file:
        gzipped = file.peek(2)[:2] == GZIP  # type: ignore[attr-defined] # a buffered reader's
        with gzip.GzipFile(fileobj=file) if gzipped else file as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def read_jsonl(name: str, place: Place) -> Iterator[Row]:
    """Read the objects of a JSON-lines file; blank lines are none."""
    with open_text(place) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{name}:{number}"
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{where}: not JSON ({getattr(error, 'msg', error)})") from None
            if not isinstance(row, dict):
                raise BadInput(f"{where}: not a JSON object")
            yield where, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a key that stands twice: json keeps the last one."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"key {_twice(name for name, _ in pairs)!r} stands twice")
    return made


def _twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _csv(name: str, place: Place) -> Iterator[Row]:
    """RFC 4180: fields may be quoted, and then hold commas, line breaks and doubled quotes."""
    csv.field_size_limit(1 << 30)  # a document may be long
    with open_text(place, newline="") as lines:
        reader = csv.reader(lines, strict=True)
        columns: list[str] | None = None
        while True:
            start = reader.line_num + 1
            where = f"{name}:{start}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise BadInput(
                    f"{where}: not CSV ({error}); a quote within a quoted field is doubled"
                ) from None
            if not fields:
                continue
            if columns is None:
                columns = _header(fields, where)
                continue
            row = _row(columns, fields, where)
            if reader.line_num > start:
                _refuse_swallowed_rows(fields, columns, where, reader.line_num)
            yield where, row


def _refuse_swallowed_rows(fields: list[str], columns: list[str], where: str, end: int) -> None:
    """Raises BadInput where a field over several lines looks like rows.

    A quote that was meant as a letter begins such a field. Without it each line is a row: with as
    many fields, and an id of the same form as in the first one.
    """
    id_places = [i for i, name in enumerate(columns) if name in ("query_id", "doc_id")]
    for place, field in enumerate(fields):
        lines = [line.split(",") for line in field.splitlines() if line]
        if len(lines) < 2:
            continue
        first = [*fields[:place], *lines[0]]
        last = [*lines[-1], *fields[place + 1 :]]
        rows = [first, *lines[1:-1], last]
        if any(len(row) != len(columns) for row in rows):
            continue
        if all(_has_id_like(row, first, id_places) for row in rows):
            raise BadInput(
                f"{where}: a quoted field reaches to line {end} over what look like rows; close "
                "or double its first quote, or write TSV or JSON lines"
            )


def _has_id_like(row: list[str], first: list[str], id_places: list[int]) -> bool:
    """Whether one of a row's ids is of the form that it has in the first row."""
    return any(_form(row[place]) == _form(first[place]) for place in id_places)


def _form(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _tsv(name: str, place: Place) -> Iterator[Row]:
    """A row a line, tabs between fields and no quoting, as MS MARCO, BEIR and `cut` write it."""
    with open_text(place) as lines:
        columns: list[str] | None = None
        for number, line in enumerate(lines, start=1):
            where = f"{name}:{number}"
            fields = line.rstrip("\r\n").split("\t")
            if fields == [""]:
                continue
            if columns is None:
                columns = _header(fields, where)
            else:
                yield where, _row(columns, fields, where)


def _header(fields: list[str], where: str) -> list[str]:
    columns = [field.strip() for field in fields]
    if len(set(columns)) < len(columns):
        raise BadInput(f"{where}: the header names column {_twice(columns)!r} twice")
    return columns


def _row(columns: list[str], fields: list[str], where: str) -> dict[str, Any]:
    if len(fields) != len(columns):
        raise BadInput(
            f"{where}: {len(fields)} fields, starting {fields[0]!r:.40}, below a header of "
            f"{len(columns)}; give each row as many"
        )
    return dict(zip(columns, fields, strict=True))


# By what the name of a file ends in, but for .gz.
READERS = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".csv": _csv, ".tsv": _tsv}
