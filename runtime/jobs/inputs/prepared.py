"""Inputs that are not Parquet become Parquet: what is to be scored beside the user's own columns, with their types."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xopt.runtime.data.tables import Values
from xopt.runtime.errors import BadInput
from xopt.runtime.files import new_file
from xopt.runtime.jobs.inputs.columns import PREPARED, Columns, Row, columns_of, row_of
from xopt.runtime.scoring.encode import clean

__all__ = ["JSON", "prepare", "prepared_columns", "prepared_fields", "write_prepared"]

ROWS_AT_ONCE = 4096
EXACT_INTEGERS = 1 << 53  # beyond, a float has not all of them
JSON = {b"xopt": b"json"}  # marks a column of values that no one type holds, each as JSON


def prepared_columns(columns: Columns) -> Columns:
    """The columns that a prepared file has for those of an input."""
    there = {"query": "query", "text": "text"}
    there.update({name: name for name in ("query_id", "doc_id", "first") if getattr(columns, name) is not None})
    return Columns(**{name: f"{PREPARED}{column}" for name, column in there.items()})


def prepared_fields(columns: Columns) -> list[pa.Field]:
    """The fields that they are of."""
    return [pa.field(n, pa.float64() if n == columns.first else pa.large_string()) for n in columns.names()]


def write_prepared(rows: Iterable[Row], columns: Columns) -> dict[str, pa.Array]:
    """The values of prepared columns for rows."""
    rows = list(rows)
    role = {getattr(columns, name): name for name in ("query_id", "query", "doc_id", "text", "first")}
    return {
        field.name: pa.array([getattr(row, role[field.name]) for row in rows], field.type)
        for field in prepared_fields(columns)
    }


def prepare(read: Callable[[], Iterable[Values]], asked: Columns, name: str, out: Path) -> Columns:
    """Write the rows that `read` gives, twice, to a Parquet file. Returns the input's columns.

    The first time tells the types: whole numbers, floats, truth values and texts stay what they are, and of a column
    with several kinds, or with lists and objects, each value is kept as JSON. Raises BadInput where a row is bad.
    """
    kinds: dict[str, set[str]] = {}
    for _, values in read():
        for column, value in values.items():
            kinds.setdefault(column, set()).add(_kind(value))
    if not kinds:
        raise BadInput(f"{name}: no candidates in it; each row needs a query and a text, of CSV and TSV below a header")
    columns = columns_of(asked, list(kinds), name)
    fields = [_field(column, found) for column, found in kinds.items()]
    written = prepared_columns(columns)
    schema = pa.schema([*prepared_fields(written), *fields])
    rows = iter(read())
    with new_file(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while part := list(islice(rows, ROWS_AT_ONCE)):
            mine = write_prepared((row_of(values, columns, where) for where, values in part), written)
            own = {
                field.name: pa.array([_value(v.get(field.name), field) for _, v in part], field.type)
                for field in fields
            }
            writer.write_table(pa.table({**mine, **own}, schema=schema))
    return columns


def _kind(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) <= EXACT_INTEGERS else "long" if -(1 << 63) <= value < 1 << 63 else "json"
    return "float" if isinstance(value, float) else "str" if isinstance(value, str) else "json"


def _field(name: str, kinds: set[str]) -> pa.Field:
    kinds = kinds - {"null"}
    for type_, held in (
        (pa.large_string(), {"str"}),
        (pa.bool_(), {"bool"}),
        (pa.int64(), {"int", "long"}),
        (pa.float64(), {"int", "float"}),
    ):
        if kinds <= held:
            return pa.field(name, type_)
    return pa.field(name, pa.large_string(), metadata=JSON)


def _value(value: Any, field: pa.Field) -> Any:
    if field.metadata:
        return None if value is None else json.dumps(value, ensure_ascii=True)
    if _kind(value) == "null":
        return None
    return clean(value) if isinstance(value, str) else value
