"""Parquet files of candidates, and their rows from any place on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xopt.runtime.data.columns import Columns, check_types, pairs_of
from xopt.runtime.data.parquet import batches_of, conformed, open_parquet, row_bytes
from xopt.runtime.data.places import Place
from xopt.runtime.errors import BadInput, first_line

__all__ = ["PAIRS", "File", "Reader", "known_file", "pairs_at"]

# What is to be scored; null where an input has none.
PAIRS = pa.schema(
    [
        ("query_id", pa.large_string()),
        ("query", pa.large_string()),
        ("doc_id", pa.large_string()),
        ("text", pa.large_string()),
        ("first", pa.float64()),
    ]
)


@dataclass(frozen=True)
class File:
    """A Parquet file of candidates: the input that it holds, where it lies, and its columns.

    row_bytes: what a row takes in memory, by the file's own sizes.
    """

    name: str
    place: Place
    rows: int
    row_bytes: float
    columns: Columns


def known_file(name: str, place: Place, columns: Columns) -> tuple[File, pa.Schema]:
    """Open a file and check the types of its columns; with its schema."""
    with open_parquet(name, place) as opened:
        schema = opened.schema_arrow
        check_types(schema, columns, name)
        return File(name, place, opened.metadata.num_rows, row_bytes(opened), columns), schema


def pairs_at(table: pa.Table, file: File, places: Sequence[int] | NDArray[np.int64]) -> pa.Table:
    """Take what is to be scored out of rows of a file, which stand at `places`, as `PAIRS`."""
    values = {name: table.column(name).combine_chunks() for name in file.columns.names()}
    pairs = pairs_of(values, file.columns, lambda row: f"{file.name}: row {places[row]}")
    return conformed(pairs, PAIRS, file.name)


class Reader:
    """Reads rows of one file, cheaply where they follow those read before."""

    def __init__(self, file: File, names: Sequence[str]) -> None:
        self.file = file
        self._opened = open_parquet(file.name, file.place)
        wanted = {*names, *file.columns.names()}
        self.names = [name for name in self._opened.schema_arrow.names if name in wanted]
        meta = self._opened.metadata
        groups = [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]
        self._group_starts = np.cumsum([0, *groups])
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._held: pa.RecordBatch | None = None
        # The first row of the batch that is held, and the row after its last.
        self._start = file.rows
        self._stop = file.rows

    def rows(self, start: int, stop: int) -> pa.Table:
        """Read rows from `start` up to, without, `stop`. Raises BadInput where it is damaged."""
        try:
            return self._rows(start, stop)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise BadInput(
                f"{self.file.name}: rows {start} to {stop} cannot be read ({first_line(error)}); "
                "mend it, and begin again"
            ) from error

    def _rows(self, start: int, stop: int) -> pa.Table:
        group = int(np.searchsorted(self._group_starts, start, side="right")) - 1
        if start < self._start or self._group_starts[group] > self._stop:
            self._start = self._stop = int(self._group_starts[group])
            self._held = None
            self._batches = batches_of(self._opened, self.names, group)
        found = []
        while start < stop:
            if self._held is None or start >= self._stop:
                self._held = next(self._batches, None)
                if self._held is None:
                    raise ValueError(f"it ends before row {start}")
                self._start = self._stop
                self._stop += self._held.num_rows
                continue
            last = min(stop, self._stop)
            found.append(self._held.slice(start - self._start, last - start))
            start = last
        if not found:
            return self._opened.schema_arrow.empty_table().select(self.names)
        return pa.Table.from_batches(found)
