"""Candidates of scattered queries are brought together, on disk and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xopt.runtime.data.columns import Columns
from xopt.runtime.data.parquet import batches_of, conformed, open_parquet
from xopt.runtime.errors import BadInput
from xopt.runtime.files import writing
from xopt.runtime.jobs.inputs.files import File, pairs_at
from xopt.runtime.jobs.inputs.prepared import prepared_columns, renamed

__all__ = ["gather", "gathered_columns"]

BUCKET_ROWS = 1 << 16
BUCKET_BYTES = 1 << 27
MOST_BUCKETS = 512
PLACE = "xopt:place"  # of a row among all


def gather(
    files: Sequence[File], runs: NDArray[np.int64], schema: pa.Schema, folder: Path
) -> list[Path]:
    """Write the rows of `runs`, a query's together, to prepared files in `folder`.

    The queries are cut into buckets by hash, as an external hash join does it. Each bucket is then
    put in order: by the first row of its queries, and within them in the inputs' order. `schema` is
    that of the users' columns.
    """
    lengths = runs[:, 2] - runs[:, 1]
    row_bytes = np.array([file.row_bytes for file in files])
    size = float((lengths * row_bytes[runs[:, 0]]).sum())
    count = int(max(lengths.sum() / BUCKET_ROWS, size / BUCKET_BYTES)) + 1
    count = min(MOST_BUCKETS, count)
    columns = gathered_columns(files)
    buckets = [folder / f"bucket-{number:04d}.parquet" for number in range(count)]
    with writing(folder), ExitStack() as stack:
        writers: dict[int, pq.ParquetWriter] = {}
        for table, hashes in _chosen(files, runs, columns, schema):
            numbers = hashes % count
            for number in np.unique(numbers).tolist():
                if number not in writers:
                    writer = pq.ParquetWriter(buckets[number], table.schema)
                    writers[number] = stack.enter_context(writer)
                writers[number].write_table(table.filter(pa.array(numbers == number)))
    made = []
    for number in sorted(writers):
        with pq.ParquetFile(buckets[number]) as bucket:
            ordered = _ordered(bucket.read(), columns)
        _check_documents(ordered, columns, files)
        made.append(folder / f"gathered-{number:04d}.parquet")
        with writing(folder):
            pq.write_table(ordered.drop_columns([PLACE]), made[-1])
        buckets[number].unlink()
    return made


def gathered_columns(files: Sequence[File]) -> Columns:
    """Name what is scored: document ids where all files have them, others where one has."""
    every = [file.columns for file in files]
    return prepared_columns(
        Columns(
            query_id="query_id" if any(each.query_id for each in every) else None,
            doc_id="doc_id" if all(each.doc_id for each in every) else None,
            first="first" if any(each.first for each in every) else None,
        )
    )


def _chosen(
    files: Sequence[File], runs: NDArray[np.int64], columns: Columns, schema: pa.Schema
) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
    """The rows of `runs` as prepared tables, with the hash of each one's query."""
    before = 0
    for number, file in enumerate(files):
        mine = runs[runs[:, 0] == number]
        if len(mine):
            rows = np.concatenate([np.arange(start, stop) for start, stop in mine[:, 1:3]])
            hashes = np.repeat(mine[:, 3], mine[:, 2] - mine[:, 1])
            for table, first, last in _batches_with(file, rows, schema.names):
                chosen = rows[first:last]
                made = renamed(pairs_at(table, file, chosen), columns)
                own = conformed(table, schema, file.name)
                made.update(zip(schema.names, own.columns, strict=True))
                made[PLACE] = pa.array(before + chosen)
                yield pa.table(made), hashes[first:last]
        before += file.rows


def _batches_with(
    file: File, rows: NDArray[np.int64], names: Sequence[str]
) -> Iterator[tuple[pa.Table, int, int]]:
    """Some rows of a file, with which of `rows` they are: the first, and the one after the last."""
    at = 0
    with open_parquet(file.name, file.place) as opened:
        there = opened.schema_arrow.names
        wanted = dict.fromkeys([*file.columns.names(), *(n for n in names if n in there)])
        for batch in batches_of(opened, list(wanted)):
            first, last = np.searchsorted(rows, [at, at + batch.num_rows])
            if last > first:
                table = pa.Table.from_batches([batch])
                yield table.take(pa.array(rows[first:last] - at)), first, last
            at += batch.num_rows


def _ordered(table: pa.Table, columns: Columns) -> pa.Table:
    places = table.column(PLACE).to_numpy()
    ids = table.column(columns.query_id or columns.query).combine_chunks()
    queries = ids.dictionary_encode(null_encoding="encode")
    numbers = queries.indices.to_numpy()
    first = np.full(len(queries.dictionary), np.iinfo(np.int64).max)
    np.minimum.at(first, numbers, places)
    return table.take(pa.array(np.lexsort((places, first[numbers]))))


def _check_documents(table: pa.Table, columns: Columns, files: Sequence[File]) -> None:
    """Raises BadInput, with both places, where a document stands twice among those of a query."""
    if columns.doc_id is None:
        return
    names = (columns.query_id or columns.query, columns.doc_id, PLACE)
    values = [table.column(name).to_pylist() for name in names]
    seen: dict[tuple[str, str], int] = {}
    for query, document, place in zip(*values, strict=True):
        if query is None:
            continue
        first = seen.setdefault((query, document), place)
        if first != place:
            raise BadInput(
                f"{_place(files, place)}: document {document!r:.60} stands twice among the "
                f"candidates of {query!r:.60}, first in {_place(files, first)}; keep one"
            )


def _place(files: Sequence[File], row: int) -> str:
    """Where a row of all inputs stands."""
    for file in files:
        if row < file.rows:
            return f"{file.name}: row {row}"
        row -= file.rows
    raise IndexError(row)
