"""Parts: whole queries, as many together as are scored and written at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.jobs.inputs.files import File

__all__ = ["Part", "Slice", "cut", "part_rows"]

PART_ROWS = {"cpu": 4096, "cuda": 65536}  # a fault loses no more than the part that was under way
# Times as many: few of them are scored, and a cascade's blocks are small at a part's end.
CASCADED = 4
PART_BYTES = 1 << 27

Slice = tuple[int, int, int]  # a file's number, the first row, and the row after the last


@dataclass(frozen=True)
class Part:
    """Rows that are scored and written together: slices of the job's files."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        return sum(stop - start for _, start, stop in self.slices)


def part_rows(device: str, cascade: bool) -> int:
    """How many rows a part has at most."""
    return PART_ROWS[device] * (CASCADED if cascade else 1)


def cut(runs: NDArray[np.int64], files: Sequence[File], most: int) -> list[list[Slice]]:
    """Cut runs, of which those of one query follow each other, into the slices of parts.

    A part has `most` rows, and `PART_BYTES` bytes, at most, unless a single query has more.
    """
    made: list[list[Slice]] = []
    rows = 0
    size = 0.0
    changes = np.flatnonzero(runs[1:, 3] != runs[:-1, 3]) + 1
    bounds = [0, *changes.tolist(), len(runs)] if len(runs) else []
    for first, last in itertools.pairwise(bounds):
        query: list[Slice] = [
            (file, start, stop) for file, start, stop, _ in runs[first:last].tolist()
        ]
        query_rows = sum(stop - start for _, start, stop in query)
        query_size = sum((stop - start) * files[file].row_bytes for file, start, stop in query)
        if not made or rows + query_rows > most or size + query_size > PART_BYTES:
            made.append([])
            rows = 0
            size = 0.0
        for each in query:
            _append(made[-1], each)
        rows += query_rows
        size += query_size
    return made


def _append(part: list[Slice], more: Slice) -> None:
    """Add a slice to a part, to its last one where it goes on with that."""
    file, start, stop = more
    if part and part[-1][0] == file and part[-1][2] == start:
        part[-1] = (file, part[-1][1], stop)
    else:
        part.append(more)
