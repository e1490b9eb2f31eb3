"""The one way in which documents are put in order: best first, ties as they came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ranked"]


def ranked(
    scores: NDArray[np.floating[Any]], queries: NDArray[np.integer[Any]] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank the documents of each query by their scores, the highest first.

    `scores` are floats[n]; what has none, NaN, comes last. `queries` is the number of each
    document's query, int[n], one query without it. Documents of one score stay in the order in
    which they came. Returns the rows by query and then best first, and each row's rank within its
    query, from 1.
    """
    numbers = np.zeros(len(scores), np.int64) if queries is None else np.asarray(queries)
    order = np.lexsort((-np.asarray(scores, np.float64), np.isnan(scores), numbers))
    starts = np.searchsorted(numbers[order], numbers[order], side="left")
    ranks = np.empty(len(scores), np.int64)
    ranks[order] = np.arange(len(scores)) - starts + 1
    return order, ranks
