"""Parquet files: their rows in bounded memory, and one type for what writers call by many names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xopt.runtime.data.places import Place, reached
from xopt.runtime.errors import BadInput, first_line

__all__ = [
    "JSON",
    "batches_of",
    "conformed",
    "damaged",
    "is_json",
    "one_schema",
    "open_parquet",
    "plain",
    "row_bytes",
]

JSON = {b"xopt": b"json"}  # marks a column of values that no one type holds, each as JSON
BATCH_ROWS = 4096
BATCH_BYTES = 1 << 25
PROBE_ROWS = 64  # by which the size of rows is seen
INTEGER_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}  # of the largest whole number, by bits
UTC = ("Etc/UTC", "Z", "+00:00", "Zulu", "Etc/Zulu")


def open_parquet(name: str, place: Place) -> pq.ParquetFile:
    """Open a Parquet file. Raises BadInput where it is none.

    Times in Spark's INT96 are read as microseconds: as nanoseconds they would end in 2262.
    """
    try:
        with reached(place):
            file = _opened(place)
        return pq.ParquetFile(file, pre_buffer=not place.is_local, coerce_int96_timestamp_unit="us")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(
            f"{name}: not a Parquet file ({first_line(error)}); write it again, or name it as "
            "what it is"
        ) from error


def _opened(place: Place) -> Any:
    """A file that is read from any place on. On HTTP it is read whole: servers may not know how."""
    if place.path.startswith(("http://", "https://")):
        with place.open() as stream:
            return pa.BufferReader(stream.read())
    return place.system.open_input_file(place.path)


def row_bytes(opened: pq.ParquetFile, columns: Sequence[str] | None = None) -> float:
    """Estimate the bytes of a row in memory, by the sizes that the file states and some rows.

    A text that stands in many rows may take the bytes of one in the file.
    """
    meta = opened.metadata
    size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    stated = size / max(1, meta.num_rows)
    try:
        first = next(opened.iter_batches(PROBE_ROWS, columns=columns), None)
    except (pa.ArrowException, OSError):  # a damaged file, which says so when it is read
        first = None
    return float(max(stated, first.nbytes / first.num_rows) if first else stated)


def batches_of(
    opened: pq.ParquetFile, columns: Sequence[str], first_group: int = 0
) -> Iterator[pa.RecordBatch]:
    """Read batches of some columns, in plain types, from a row group on.

    Row group by row group: what is fetched ahead from a store is kept until the call ends.
    """
    per_row = max(1.0, row_bytes(opened, list(columns)))
    for group in range(first_group, opened.metadata.num_row_groups):
        rows = int(max(1, min(BATCH_ROWS, BATCH_BYTES / per_row)))
        for batch in opened.iter_batches(rows, row_groups=[group], columns=list(columns)):
            made = plain(batch)
            per_row = max(per_row, made.nbytes / max(1, made.num_rows))
            yield made


def damaged(name: str, row: int, schema: pa.Schema, error: BaseException) -> BadInput:
    """Say that a file cannot be read from a row on, and why."""
    reason = first_line(error)
    fixed = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
    if "lists to be of size" in reason and fixed:
        return BadInput(
            f"{name}: column {', '.join(map(repr, fixed))} of lists of one size holds a null, "
            "which Arrow cannot read; write plain lists, or leave it out with `ids_only=True`"
        )
    return BadInput(f"{name}: is damaged behind row {row} ({reason}); mend it, and begin again")


def one_schema(
    schemas: Sequence[pa.Schema], names: Sequence[str], ids: Collection[str]
) -> pa.Schema:
    """Find one schema for the columns of all inputs; one that an input lacks is null there.

    Types that mean the same are joined: widths of numbers, units of times, lists and structs by
    several writers. Of columns of `ids`, whole numbers among texts become texts. Raises BadInput
    where a column is of two types, naming the inputs.
    """
    together: dict[str, pa.Field] = {}
    for schema, name in zip(schemas, names, strict=True):
        for field in map(_plain_field, schema):
            before = together.get(field.name)
            joined = field if before is None else _joined(before, field, field.name in ids)
            if joined is None:
                raise BadInput(
                    f"{name}: column {field.name!r} is of {_described(field)}, in inputs before "
                    f"of {_described(together[field.name])}; cast one, leave the column out with "
                    "`ids_only=True`, or rerank the files one by one"
                )
            together[field.name] = joined
    return pa.schema(list(together.values()))


def conformed(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """Take the columns of `schema` out of a table; those that it lacks are null.

    Raises BadInput where a value does not fit: a date beyond 2262 beside nanoseconds.
    """
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        try:
            columns.append(table.column(field.name).cast(field.type))
        except pa.ArrowException as error:
            raise BadInput(
                f"{name}: column {field.name!r} has a value that {field.type}, the type in all "
                f"inputs, cannot hold ({first_line(error)}); cast it, or leave the column out "
                "with `ids_only=True`"
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Give the columns of a batch plain types."""
    fields = [field.with_type(_plain_type(field.type)) for field in batch.schema]
    columns = [
        _plain_array(column, field.type)
        for column, field in zip(batch.columns, fields, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def is_json(field: pa.Field) -> bool:
    """Whether a column's values are kept as JSON."""
    return field.metadata is not None and JSON.items() <= field.metadata.items()


def _joined(one: pa.Field, other: pa.Field, is_id: bool) -> pa.Field | None:
    """A field that holds the values of both, if there is one."""
    if pa.types.is_null(one.type) or one.equals(other, check_metadata=True):
        return other
    if pa.types.is_null(other.type):
        return one
    if is_json(one) or is_json(other):
        return None
    try:
        schemas = [pa.schema([one]), pa.schema([other])]
        joined = pa.unify_schemas(schemas, promote_options="permissive").field(0)
    except pa.ArrowException:
        joined = None
    kinds = (one.type, other.type)
    if joined is not None and all(_holds(joined.type, kind) for kind in kinds):
        return joined
    return pa.field(one.name, pa.large_string()) if is_id else None


def _holds(wide: pa.DataType, kind: pa.DataType) -> bool:
    """Whether a type holds the values of another one, as they are.

    A time that is too far for the unit is seen when it is read: see `conformed`.
    """
    if wide == kind or pa.types.is_null(kind):
        return True
    if _is_list(wide):
        return _holds(wide.value_type, kind.value_type)
    if pa.types.is_map(wide):
        return _holds(wide.key_type, kind.key_type) and _holds(wide.item_type, kind.item_type)
    if pa.types.is_struct(wide):
        return all(_holds(wide.field(field.name).type, field.type) for field in kind)
    return _holds_plain(wide, kind)


def _holds_plain(wide: pa.DataType, kind: pa.DataType) -> bool:
    """As `_holds`, of types that hold no others."""
    if pa.types.is_decimal(kind):
        return bool(pa.types.is_decimal(wide))
    if not pa.types.is_integer(kind):
        return (wide, kind) != (pa.large_binary(), pa.large_string())
    if pa.types.is_decimal(wide):
        return bool(wide.precision - wide.scale >= INTEGER_DIGITS[kind.bit_width])
    if pa.types.is_floating(wide):
        return bool(kind.bit_width <= 32)
    return bool(kind != pa.uint64())


def _is_list(kind: pa.DataType) -> bool:
    views = (pa.types.is_list_view(kind), pa.types.is_large_list_view(kind))
    lists = (
        pa.types.is_list(kind),
        pa.types.is_large_list(kind),
        pa.types.is_fixed_size_list(kind),
    )
    return any((*views, *lists))


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def _has_view(kind: pa.DataType) -> bool:
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return _is_view(kind) or any(map(_has_view, inner))


def _described(field: pa.Field) -> str:
    return "several kinds" if is_json(field) else str(field.type)


def _plain_field(field: pa.Field) -> pa.Field:
    """The field of a plain type, without any metadata but xopt's own."""
    return pa.field(field.name, _plain_type(field.type), metadata=JSON if is_json(field) else None)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The one type for what writers call by many names, which every operation knows.

    Without dictionaries and views, with one kind of string and of list, whose children have one
    name and may be null.
    """
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_nested(kind):
        return _plain_nested(kind)
    if pa.types.is_timestamp(kind) and kind.tz in UTC:
        return pa.timestamp(kind.unit, "UTC")
    if kind in (pa.string(), pa.string_view()):
        return pa.large_string()
    return pa.large_binary() if kind in (pa.binary(), pa.binary_view()) else kind


def _plain_nested(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_map(kind):
        return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain_type(field.type)) for field in kind])
    if not _is_list(kind):  # a union
        return kind
    # Of lists of one size too: Arrow writes nulls among these, but cannot read them.
    return pa.large_list(pa.field("item", _plain_type(kind.value_type)))


def _plain_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if not _has_view(array.type):
        return array.cast(kind)
    if not _is_view(array.type):
        return pa.array(array.to_pylist(), kind)
    # Arrow's cast of views to lists loses values (pyarrow 25.0.1).
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    ends = pc.cumulative_sum(lengths.cast(pa.int64()))
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
    values = _plain_array(pc.list_flatten(array), kind.value_type)
    return pa.LargeListArray.from_arrays(offsets, values, type=kind, mask=array.is_null())
