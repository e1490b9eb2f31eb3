"""The queries on which a ranking differs most from the reference's, with both rankings and the
texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.data.candidates import Candidates

__all__ = ["Placed", "WorstQuery", "worst_queries"]

QUERIES = 5  # of a variant
SAME = 1 - 1e-9  # of rank-biased overlap, whose weights are rounded
RANKS = 10  # documents that either ranking has among so many are shown

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Placed:
    """A document in both rankings: ranks from 1, scores, and its grade where it is judged."""

    doc_id: str
    text: str
    grade: int | None
    reference_rank: int
    rank: int
    reference_score: float
    score: float


@dataclass(frozen=True)
class WorstQuery:
    """A query, what it lost (nDCG@10, where it is judged and moved; rank-biased overlap), and
    both rankings' best.
    """

    query_id: str
    query: str
    ndcg10_drop: float | None
    rbo: float
    documents: tuple[Placed, ...]


def worst_queries(
    candidates: Candidates, expected: Scores, scores: Scores, values: dict[str, NDArray[np.float64]]
) -> tuple[WorstQuery, ...]:
    """The queries that lost most, by nDCG@10 first and by rank-biased overlap then; see
    `agreement_by_query`.
    """
    groups = list(candidates.groups().items())
    drops = np.nan_to_num(values.get("ndcg10_drop", np.zeros(len(groups))))
    order = np.lexsort((values["rbo"], -np.round(drops, 6)))[:QUERIES]
    worst = []
    for i in order:
        query_id, rows = groups[i]
        if values["rbo"][i] < SAME:
            placed = _placed(candidates, rows, expected[rows], scores[rows])
            drop = float(drops[i]) if query_id in candidates.qrels else None
            worst.append(
                WorstQuery(
                    query_id,
                    candidates.rows[rows.start].query,
                    drop,
                    float(values["rbo"][i]),
                    placed,
                )
            )
    return tuple(worst)


def _placed(
    candidates: Candidates, rows: slice, expected: Scores, scores: Scores
) -> tuple[Placed, ...]:
    first, second = (
        np.argsort(np.argsort(-s, kind="stable"), kind="stable") + 1 for s in (expected, scores)
    )
    judged = candidates.qrels.get(candidates.rows[rows.start].query_id, {})
    placed = [
        Placed(row.doc_id, row.text, judged.get(row.doc_id), int(a), int(b), float(s), float(t))
        for row, a, b, s, t in zip(
            candidates.rows[rows], first, second, expected, scores, strict=True
        )
        if min(a, b) <= RANKS
    ]
    return tuple(sorted(placed, key=lambda document: document.reference_rank))
