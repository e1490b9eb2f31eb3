"""Inputs that are not Parquet become Parquet: what is scored, beside a user's own columns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xopt.runtime.data.columns import PREPARED, Columns, pairs_of
from xopt.runtime.data.parquet import JSON
from xopt.runtime.data.tables import chunk_of
from xopt.runtime.data.text import Row
from xopt.runtime.errors import BadInput
from xopt.runtime.files import new_file
from xopt.runtime.jobs.inputs.files import PAIRS
from xopt.runtime.scoring.encode import clean

__all__ = ["Kinds", "fields_of", "kinds_of", "prepare", "prepared_columns", "renamed"]

ROWS_AT_ONCE = 4096
EXACT_INTEGERS = 1 << 53  # beyond, a float has not all of them

Kinds = dict[str, set[str]]  # the kinds of a column's values, by its name


def prepared_columns(columns: Columns) -> Columns:
    """Name the columns that a prepared file has for those of an input."""
    ids = [name for name in ("query_id", "doc_id", "first") if getattr(columns, name) is not None]
    return Columns(**{name: f"{PREPARED}{name}" for name in ("query", "text", *ids)})


def renamed(pairs: pa.Table, columns: Columns) -> dict[str, pa.Array]:
    """Take the columns of a prepared file out of pairs, under their names there."""
    names = [name.removeprefix(PREPARED) for name in columns.names()]
    return {f"{PREPARED}{name}": pairs.column(name) for name in names}


def kinds_of(rows: Iterable[Row]) -> Kinds:
    """Find the columns of a table, and of what kinds their values are."""
    kinds: Kinds = {}
    for _, values in rows:
        for column, value in values.items():
            kinds.setdefault(clean(column), set()).add(_kind(value))
    return kinds


def fields_of(tables: Sequence[Kinds], ids: Collection[str]) -> dict[str, pa.Field]:
    """Choose the fields of all tables together.

    Whole numbers, floats, truth values and texts stay what they are, and whole numbers among floats
    become floats. Of a column with several kinds, or with lists and objects, each value is kept as
    JSON, but of a column of `ids` as text.
    """
    together: Kinds = {}
    for kinds in tables:
        for column, found in kinds.items():
            together.setdefault(column, set()).update(found - {"null"})
    return {column: _field(column, found, column in ids) for column, found in together.items()}


def prepare(
    read: Callable[[], Iterable[Row]], columns: Columns, fields: Sequence[pa.Field], out: Path
) -> None:
    """Write the rows that `read` gives to a Parquet file, with the users' columns as `fields`.

    Raises BadInput where a row is bad.
    """
    written = prepared_columns(columns)
    own = [PAIRS.field(name.removeprefix(PREPARED)).with_name(name) for name in written.names()]
    schema = pa.schema([*own, *fields])
    rows = iter(read())
    with new_file(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while part := list(islice(rows, ROWS_AT_ONCE)):
            chunk = chunk_of(part, columns.names())
            made = renamed(pairs_of(chunk.values, columns, chunk.where), written)
            for field in fields:
                values = [_value(row.get(field.name), field, where) for where, row in part]
                made[field.name] = pa.array(values, field.type)
            writer.write_table(pa.table(made, schema=schema))


def _kind(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "str"
    if not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        return "json"
    return "int" if abs(value) <= EXACT_INTEGERS else "long"


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
    """The value as any JSON reader takes it: without NaN, infinities and halves of letters."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if _kind(value) == "null" else value
