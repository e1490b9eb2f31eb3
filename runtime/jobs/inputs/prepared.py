"""Inputs that are not Parquet become Parquet: what is to be scored beside the user's own columns,
with their types.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xopt.runtime.data.tables import Values
from xopt.runtime.errors import BadInput
from xopt.runtime.files import new_file
from xopt.runtime.jobs.inputs.columns import PREPARED, Columns, Row, row_of
from xopt.runtime.scoring.encode import clean

__all__ = [
    "JSON",
    "Kinds",
    "fields_of",
    "kinds_of",
    "prepare",
    "prepared_columns",
    "prepared_fields",
    "write_prepared",
]

ROWS_AT_ONCE = 4096
EXACT_INTEGERS = 1 << 53  # beyond, a float has not all of them
JSON = {b"xopt": b"json"}  # marks a column of values that no one type holds, each as JSON

Kinds = dict[str, set[str]]  # the kinds of a column's values, by its name


def prepared_columns(columns: Columns) -> Columns:
    """The columns that a prepared file has for those of an input."""
    there = {"query": "query", "text": "text"}
    there.update(
        {
            name: name
            for name in ("query_id", "doc_id", "first")
            if getattr(columns, name) is not None
        }
    )
    return Columns(**{name: f"{PREPARED}{column}" for name, column in there.items()})


def prepared_fields(columns: Columns) -> list[pa.Field]:
    """The fields that they are of."""
    return [
        pa.field(n, pa.float64() if n == columns.first else pa.large_string())
        for n in columns.names()
    ]


def write_prepared(rows: Iterable[Row], columns: Columns) -> dict[str, pa.Array]:
    """The values of prepared columns for rows."""
    rows = list(rows)
    role = {
        getattr(columns, name): name for name in ("query_id", "query", "doc_id", "text", "first")
    }
    return {
        field.name: pa.array([getattr(row, role[field.name]) for row in rows], field.type)
        for field in prepared_fields(columns)
    }


def kinds_of(rows: Iterable[Values]) -> Kinds:
    """The columns of a table, and of what kinds their values are."""
    kinds: Kinds = {}
    for _, values in rows:
        for column, value in values.items():
            kinds.setdefault(clean(column), set()).add(_kind(value))
    return kinds


def fields_of(tables: Sequence[Kinds], ids: Collection[str]) -> dict[str, pa.Field]:
    """The fields of all tables together.

    Whole numbers, floats, truth values and texts stay what they are, whole numbers among floats
    become floats, and of a column with several kinds, or with lists and objects, each value is
    kept as JSON; but of a column of `ids` as text.
    """
    together: Kinds = {}
    for kinds in tables:
        for column, found in kinds.items():
            together.setdefault(column, set()).update(found - {"null"})
    return {column: _field(column, found, column in ids) for column, found in together.items()}


def prepare(
    read: Callable[[], Iterable[Values]], columns: Columns, fields: Sequence[pa.Field], out: Path
) -> None:
    """Write the rows that `read` gives to a Parquet file, with the users' columns as `fields`.

    Raises BadInput where a row is bad.
    """
    written = prepared_columns(columns)
    schema = pa.schema([*prepared_fields(written), *fields])
    rows = iter(read())
    with new_file(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while part := list(islice(rows, ROWS_AT_ONCE)):
            mine = write_prepared(
                (row_of(values, columns, where) for where, values in part), written
            )
            own = {
                field.name: pa.array(
                    [_value(v.get(field.name), field, where) for where, v in part], field.type
                )
                for field in fields
            }
            writer.write_table(pa.table({**mine, **own}, schema=schema))


def _kind(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return (
            "int"
            if abs(value) <= EXACT_INTEGERS
            else "long"
            if -(1 << 63) <= value < 1 << 63
            else "json"
        )
    return "float" if isinstance(value, float) else "str" if isinstance(value, str) else "json"


def _field(name: str, kinds: set[str], is_id: bool) -> pa.Field:
    for type_, held in (
        (pa.null(), set[str]()),
        (pa.large_string(), {"str"}),
        (pa.bool_(), {"bool"}),
        (pa.int64(), {"int", "long"}),
        (pa.float64(), {"int", "float"}),
    ):
        if kinds <= held:
            return pa.field(name, type_)
    return pa.field(name, pa.large_string(), metadata=None if is_id else JSON)


def _value(value: Any, field: pa.Field, where: str) -> Any:
    if _kind(value) == "null":
        return None
    if not field.metadata:
        return clean(str(value)) if field.type == pa.large_string() else value
    try:
        return json.dumps(_plain(value), ensure_ascii=False)
    except RecursionError:
        raise BadInput(
            f"{where}: {field.name!r} holds lists or objects too deep in each other"
        ) from None


def _plain(value: Any) -> Any:
    """The value as any JSON reader takes it: without NaN, infinities, and halves of surrogate
    pairs.
    """
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if _kind(value) == "null" else value
