"""Parts: whole queries, as many together as are scored and written at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.jobs.inputs.files import File

__all__ = ["Part", "cut", "part_rows"]

PART_ROWS = {"cpu": 4096, "cuda": 65536}  # a fault loses no more than a part that was under way
# times as many: few of them are scored, and a cascade's blocks are small at a part's end
CASCADED = 4
PART_BYTES = 1 << 28


@dataclass(frozen=True)
class Part:
    """Rows that are scored and written together: slices (file, first row, end) of the job's
    files.
    """

    number: int
    slices: tuple[tuple[int, int, int], ...]

    @property
    def rows(self) -> int:
        return sum(stop - start for _, start, stop in self.slices)


def part_rows(device: str, cascade: bool) -> int:
    """How many rows a part has at most."""
    return PART_ROWS[device] * (CASCADED if cascade else 1)


def cut(
    runs: NDArray[np.int64], files: Sequence[File], most: int
) -> list[list[tuple[int, int, int]]]:
    """Cut runs, of which those of one query follow each other, into the slices of parts.

    A part has `most` rows, and `PART_BYTES` bytes, at most, unless a single query has more.
    """
    made: list[list[tuple[int, int, int]]] = []
    rows, size = 0, 0.0
    bounds = [0, *(np.flatnonzero(runs[1:, 3] != runs[:-1, 3]) + 1), len(runs)] if len(runs) else []
    for first, last in itertools.pairwise(bounds):
        query = [(int(file), int(start), int(stop)) for file, start, stop, _ in runs[first:last]]
        more = sum(stop - start for _, start, stop in query)
        more_bytes = sum((stop - start) * files[file].row_bytes for file, start, stop in query)
        if not made or rows + more > most or size + more_bytes > PART_BYTES:
            made.append([])
            rows, size = 0, 0.0
        for file, start, stop in query:
            if made[-1] and made[-1][-1][0] == file and made[-1][-1][2] == start:
                made[-1][-1] = (file, made[-1][-1][1], stop)
            else:
                made[-1].append((file, start, stop))
        rows, size = rows + more, size + more_bytes
    return made
