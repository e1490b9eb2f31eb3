"""Tables of candidates: text, Parquet and Hugging Face datasets, read in one way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xopt.runtime.data.fields import Values, Where
from xopt.runtime.data.parquet import batches_of, damaged, open_parquet, plain
from xopt.runtime.data.places import Place
from xopt.runtime.data.sources import Source
from xopt.runtime.data.text import Row, read_rows
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import writing

__all__ = ["Chunk", "Table", "chunk_of", "open_table", "write_hf"]

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Chunk:
    """Rows that follow each other: their values by column, and where each of them stands."""

    values: Mapping[str, Values]
    rows: int
    where: Where


@dataclass(frozen=True)
class Table:
    """A source as a table: the names of its columns, their types where it has any, its rows.

    `chunks` reads the rows of some columns.
    """

    names: list[str]
    schema: pa.Schema | None
    chunks: Callable[[Sequence[str]], Iterator[Chunk]]


def open_table(source: Source, split: str) -> Table:
    """Open a source that is no collection; `split` is that of a Hugging Face dataset.

    Raises BadInput where it cannot be read; so does reading its rows.
    """
    if source.kind == "hf":
        return _hf_table(source.name, split)
    assert source.place is not None
    if source.kind == "parquet":
        return _parquet_table(source.name, source.place)
    rows = list(read_rows(source.name, source.place))
    names = list(dict.fromkeys(name for _, values in rows for name in values))

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        yield chunk_of(rows, columns)

    return Table(names, None, chunks)


def chunk_of(rows: Sequence[Row], columns: Sequence[str]) -> Chunk:
    """Make a chunk of rows of text: what a row lacks is None."""
    values: dict[str, Values] = {}
    for name in columns:
        values[name] = [row.get(name) for _, row in rows]
    return Chunk(values, len(rows), lambda number: rows[number][0])


def _parquet_table(name: str, place: Place) -> Table:
    with open_parquet(name, place) as opened:
        schema = opened.schema_arrow

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        with open_parquet(name, place) as opened:
            yield from _chunks(name, schema, batches_of(opened, columns))

    return Table(list(schema.names), schema, chunks)


def _hf_table(name: str, split: str) -> Table:
    loaded = _load_hf(name, split).with_format("arrow")
    schema = loaded.features.arrow_schema if loaded.features else loaded.data.schema

    def chunks(columns: Sequence[str]) -> Iterator[Chunk]:
        tables = loaded.select_columns(list(columns)).iter(ROWS_AT_ONCE)
        batches = (plain(batch) for table in tables for batch in table.to_batches())
        yield from _chunks(name, schema, batches)

    return Table(list(schema.names), schema, chunks)


def _chunks(name: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    start = 0
    try:
        for batch in batches:
            batch.validate(full=True)
            values = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield Chunk(values, batch.num_rows, _rows_from(name, start))
            start += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise damaged(name, start, schema, error) from error


def _rows_from(name: str, start: int) -> Where:
    return lambda number: f"{name}: row {start + number}"


def write_hf(name: str, split: str, out: Path) -> None:
    """Write the rows of a Hugging Face dataset to a Parquet file, with the types they have there.

    `name` is `hf:ID` or `hf:ID:CONFIG`, or `hf:` and a local folder that holds one. Raises BadInput
    where the package `datasets` is not installed or the dataset cannot be loaded.
    """
    loaded = _load_hf(name, split)
    try:
        with writing(out):
            loaded.to_parquet(out)
    except BadInput:
        raise
    except Exception as error:  # each format has its own
        raise BadInput(f"{name}: cannot be read ({first_line(error)})") from error


def _load_hf(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise BadInput(f"{name}: needs the package datasets (pip install datasets)") from None
    dataset, _, config = name.removeprefix("hf:").partition(":")
    try:
        return datasets.load_dataset(dataset, config or None, split=split)
    except Exception as error:  # the hub, the file system and the format each raise their own
        raise BadInput(
            f"{name}: split {split!r} cannot be loaded ({first_line(error)}); "
            "check its name and `split=`"
        ) from error
