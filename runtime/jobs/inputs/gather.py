"""Candidates of queries that lie scattered over the inputs are brought together, on disk and in
bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput
from xopt.runtime.files import writing
from xopt.runtime.jobs.inputs.columns import Columns, rows_of
from xopt.runtime.jobs.inputs.files import File, conformed, open_file, plain
from xopt.runtime.jobs.inputs.prepared import prepared_columns, prepared_fields, write_prepared

__all__ = ["gather", "gathered_columns"]

BUCKET_ROWS, MOST_BUCKETS = 1 << 16, 512
ROWS_AT_ONCE = 1 << 15
PLACE = "xopt:place"  # of a row among all


def gather(
    files: Sequence[File], runs: NDArray[np.int64], schema: pa.Schema, folder: Path
) -> list[Path]:
    """Write the rows of `runs`, a query's together, to prepared files in `folder`.

    The queries are cut into buckets by hash, as an external hash join does it; each bucket is
    then put in order: by the first row of its queries, and within them in the inputs' order.
    `schema` is that of the users' columns.
    """
    rows = int((runs[:, 2] - runs[:, 1]).sum())
    count = min(MOST_BUCKETS, -(-rows // BUCKET_ROWS))
    columns = gathered_columns(files)
    whole = pa.schema([*prepared_fields(columns), *schema])
    buckets = [folder / f"bucket-{number:04d}.parquet" for number in range(count)]
    with writing(folder), ExitStack() as stack:
        placed = whole.append(pa.field(PLACE, pa.int64()))
        writers = [stack.enter_context(pq.ParquetWriter(bucket, placed)) for bucket in buckets]
        for table, hashes in _chosen(files, runs, columns, schema):
            numbers = hashes % count
            for number in np.unique(numbers):
                writers[number].write_table(table.filter(pa.array(numbers == number)))
    made = []
    for number, bucket in enumerate(buckets):
        table = pq.read_table(bucket)
        if len(table):
            made.append(folder / f"gathered-{number:04d}.parquet")
            ordered = _ordered(table, columns)
            _check_documents(ordered, columns, files)
            with writing(folder):
                pq.write_table(ordered.select(whole.names), made[-1])
        bucket.unlink()
    return made


def gathered_columns(files: Sequence[File]) -> Columns:
    """The columns that say what is to be scored: document ids where all files have them, others
    where one has.
    """
    ids = {
        name: [getattr(file.columns, name) for file in files]
        for name in ("query_id", "doc_id", "first")
    }
    found = {name: name for name, named in ids.items() if (all if name == "doc_id" else any)(named)}
    return prepared_columns(Columns("query", "text", **found))


def _chosen(
    files: Sequence[File], runs: NDArray[np.int64], columns: Columns, schema: pa.Schema
) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
    """The rows of `runs` as prepared tables, with the hash of each one's query."""
    before = 0
    for number, file in enumerate(files):
        mine = runs[runs[:, 0] == number]
        rows = (
            np.concatenate([np.arange(a, b) for a, b in mine[:, 1:3]])
            if len(mine)
            else np.empty(0, np.int64)
        )
        hashes = np.repeat(mine[:, 3], mine[:, 2] - mine[:, 1])
        if len(rows):
            names = list(
                dict.fromkeys(
                    [*file.columns.names(), *(n for n in schema.names if n in _names(file))]
                )
            )
            at = 0
            with open_file(file.path, file.name) as opened:
                for batch in map(plain, opened.iter_batches(ROWS_AT_ONCE, columns=names)):
                    first, last = np.searchsorted(rows, [at, at + batch.num_rows])
                    if last > first:
                        chosen = rows[first:last]
                        table = pa.Table.from_batches([batch]).take(pa.array(chosen - at))
                        yield (
                            _prepared(table, file, columns, schema, chosen, before),
                            hashes[first:last],
                        )
                    at += batch.num_rows
        before += file.rows


def _names(file: File) -> list[str]:
    with open_file(file.path, file.name) as opened:
        return list(opened.schema_arrow.names)


def _prepared(
    table: pa.Table,
    file: File,
    columns: Columns,
    schema: pa.Schema,
    places: NDArray[np.int64],
    before: int,
) -> pa.Table:
    values = {name: table.column(name).to_pylist() for name in file.columns.names()}
    mine = write_prepared(rows_of(values, file.columns, file.name, places.tolist()), columns)
    own = conformed(table, schema)
    return pa.table(
        {**mine, **{name: own.column(name) for name in schema.names}, PLACE: before + places}
    )


def _ordered(table: pa.Table, columns: Columns) -> pa.Table:
    places = table.column(PLACE).to_numpy()
    queries = (
        table.column(columns.query_id or columns.query)
        .combine_chunks()
        .dictionary_encode(null_encoding="encode")
    )
    numbers = queries.indices.to_numpy()
    first = np.full(len(queries.dictionary), np.iinfo(np.int64).max)
    np.minimum.at(first, numbers, places)
    return table.take(pa.array(np.lexsort((places, first[numbers]))))


def _check_documents(table: pa.Table, columns: Columns, files: Sequence[File]) -> None:
    """Raises BadInput, with both places, where a document stands twice among those of a query
    that there is.
    """
    if columns.doc_id is None:
        return
    names = (columns.query_id or columns.query, columns.doc_id, PLACE)
    seen: dict[tuple[str, str], int] = {}
    for query, document, place in zip(
        *(table.column(name).to_pylist() for name in names), strict=True
    ):
        if query is None:
            continue
        first = seen.setdefault((query, document), place)
        if first != place:
            twice = f"document {document!r:.60} stands twice among the candidates of {query!r:.60}"
            raise BadInput(f"{_place(files, place)}: {twice}, first in {_place(files, first)}")


def _place(files: Sequence[File], row: int) -> str:
    """Where a row of all inputs stands."""
    for file in files:
        if row < file.rows:
            return f"{file.name}: row {row}"
        row -= file.rows
    raise IndexError(row)
