"""Parquet files of candidates, and their rows from any place on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.jobs.inputs.columns import Columns, check_types
from xopt.runtime.jobs.inputs.prepared import JSON
from xopt.runtime.jobs.inputs.sources import located

__all__ = ["File", "Reader", "conformed", "known_file", "one_schema", "open_file", "plain"]

BATCH_ROWS = 4096


@dataclass(frozen=True)
class File:
    """A Parquet file of candidates: the name of the input that it holds, its address, its rows,
    and its columns.
    """

    name: str
    path: str
    rows: int
    row_bytes: float
    columns: Columns


def open_file(path: str, name: str) -> pq.ParquetFile:
    """Open a Parquet file. Raises BadInput where it is none."""
    system, place = located(path)
    try:
        return pq.ParquetFile(system.open_input_file(place), pre_buffer="://" in path)
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{name}: not a Parquet file ({first_line(error)})") from error


def known_file(name: str, path: str, columns: Columns) -> tuple[File, pa.Schema]:
    """A file whose columns are of the right types, and its schema."""
    with open_file(path, name) as opened:
        check_types(opened.schema_arrow, columns, name)
        meta = opened.metadata
        size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        return File(
            name, path, meta.num_rows, size / max(1, meta.num_rows), columns
        ), opened.schema_arrow


class Reader:
    """Reads rows of one file, its own columns and others that it has, cheaply where they follow
    those read before.
    """

    def __init__(self, file: File, names: Sequence[str]) -> None:
        self.file = file
        self._opened = open_file(file.path, file.name)
        there, wanted = self._opened.schema_arrow.names, {*names, *file.columns.names()}
        self.names = [name for name in there if name in wanted]
        groups = [
            self._opened.metadata.row_group(i).num_rows
            for i in range(self._opened.metadata.num_row_groups)
        ]
        self._starts = np.cumsum([0, *groups])
        self._batches: Iterator[pa.RecordBatch] = iter(())
        # the next row of the iterator; the first one of what is held
        self._at = self._held_from = file.rows
        self._held: pa.RecordBatch | None = None

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows from `start` up to, without, `stop`. Raises BadInput where the file is damaged
        there.
        """
        try:
            return self._rows(start, stop)
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = first_line(error)
            raise BadInput(
                f"{self.file.name}: rows {start} to {stop} cannot be read ({reason}); mend it, and begin again"
            ) from error

    def _rows(self, start: int, stop: int) -> pa.Table:
        group = int(np.searchsorted(self._starts, start, side="right")) - 1
        if start < self._held_from or self._starts[group] > self._at:
            self._at = self._held_from = int(self._starts[group])
            self._held = None
            ahead = range(group, len(self._starts) - 1)
            self._batches = self._opened.iter_batches(
                BATCH_ROWS, row_groups=list(ahead), columns=self.names
            )
        found = []
        while start < stop:
            if self._held is None or start >= self._at:
                self._held = next(self._batches, None)
                if self._held is None:
                    raise ValueError(f"it ends before row {start}")
                self._held = plain(self._held)
                self._held_from, self._at = self._at, self._at + self._held.num_rows
                continue
            last = min(stop, self._at)
            found.append(self._held.slice(start - self._held_from, last - start))
            start = last
        return (
            pa.Table.from_batches(found)
            if found
            else self._opened.schema_arrow.empty_table().select(self.names)
        )


def one_schema(
    schemas: Sequence[pa.Schema],
    names: Sequence[str],
    kept: Sequence[str] | None,
    ids: Collection[str],
) -> pa.Schema:
    """One schema for the users' columns of all inputs, or those in `kept`; one that an input
    lacks is null there.

    Of `ids`, whole numbers among texts become texts. Raises BadInput where another column is of
    two types, naming the inputs.
    """
    together: dict[str, pa.Field] = {}
    for schema, name in zip(schemas, names, strict=True):
        for field in map(_plain, schema):
            before = together.get(field.name)
            if kept is not None and field.name not in kept:
                continue
            if before is None or pa.types.is_null(before.type):
                together[field.name] = field
            elif not pa.types.is_null(field.type) and not before.equals(field, check_metadata=True):
                if field.name in ids:  # of whole numbers and texts, as `check_types` has them
                    together[field.name] = pa.field(
                        field.name, _type_of_ids(before.type, field.type)
                    )
                    continue
                raise BadInput(
                    f"{name}: column {field.name!r} is of {_said(field)}, in the inputs before it of {_said(before)}; "
                    "cast one of them, leave the column away with --ids-only, or rerank the files one by one"
                )
    return pa.schema(list(together.values()))


def _type_of_ids(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    whole = all(pa.types.is_integer(kind) and kind != pa.uint64() for kind in (one, other))
    return pa.int64() if whole else pa.large_string()


def _said(field: pa.Field) -> str:
    return "several kinds" if field.metadata else str(field.type)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries and views, and with one kind of string: what every operation
    knows.
    """
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string(kind) or kind == pa.string_view():
        return pa.large_string()
    if kind == pa.binary_view():
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = kind.value_field.with_type(_plain_type(kind.value_type))
        return pa.list_(item) if pa.types.is_list(kind) else pa.large_list(item)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
    return kind


def _plain(field: pa.Field) -> pa.Field:
    """The field of a plain type, without any metadata but xopt's own."""
    marked = field.metadata is not None and JSON.items() <= field.metadata.items()
    return pa.field(field.name, _plain_type(field.type), metadata=JSON if marked else None)


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch whose columns are of plain types."""
    fields = [field.with_type(_plain_type(field.type)) for field in batch.schema]
    columns = [column.cast(field.type) for column, field in zip(batch.columns, fields, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` out of a table; those that it lacks are null."""
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
