"""The queries on which a ranking differs most from the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.judge.statistics import Scores, Values
from xopt.runtime.data.candidates import Candidates, Row

__all__ = ["RankedDocument", "WorstQuery", "worst_queries"]

QUERIES = 5
TOP = 10  # of either ranking
SAME_RBO = 1 - 1e-9  # rank-biased overlap of equal rankings, whose weights are rounded


@dataclass(frozen=True)
class RankedDocument:
    """A document with its ranks, from 1. `grade` is None where it is not judged."""

    doc_id: str
    text: str
    grade: int | None
    reference_rank: int
    rank: int
    reference_score: float
    score: float


@dataclass(frozen=True)
class WorstQuery:
    """A query with the top documents of both rankings. `ndcg10_drop` is None without qrels."""

    query_id: str
    query: str
    ndcg10_drop: float | None
    rbo: float
    documents: tuple[RankedDocument, ...]


def worst_queries(
    candidates: Candidates, expected: Scores, scores: Scores, values: dict[str, Values]
) -> tuple[WorstQuery, ...]:
    """Return the queries that lost most nDCG@10 and, among equals, have the least overlap."""
    groups = list(candidates.groups().items())
    drops = np.nan_to_num(values.get("ndcg10_drop", np.zeros(len(groups))))
    overlaps = values["rbo"]
    worst_first = np.lexsort((overlaps, -np.round(drops, 6)))
    worst = []
    for number in worst_first[:QUERIES]:
        if overlaps[number] < SAME_RBO:
            query_id, rows = groups[number]
            grades = candidates.qrels.get(query_id)
            documents = candidates.rows[rows]
            query = WorstQuery(
                query_id,
                documents[0].query,
                None if grades is None else float(drops[number]),
                float(overlaps[number]),
                _top_documents(documents, grades or {}, expected[rows], scores[rows]),
            )
            worst.append(query)
    return tuple(worst)


def _top_documents(
    rows: Sequence[Row], grades: dict[str, int], expected: Scores, scores: Scores
) -> tuple[RankedDocument, ...]:
    """Return the documents at the top of either ranking, in the reference's order."""
    ranks = _ranks(scores)
    reference_ranks = _ranks(expected)
    documents = []
    for i in np.argsort(reference_ranks):
        if min(reference_ranks[i], ranks[i]) <= TOP:
            document = RankedDocument(
                rows[i].doc_id,
                rows[i].text,
                grades.get(rows[i].doc_id),
                int(reference_ranks[i]),
                int(ranks[i]),
                float(expected[i]),
                float(scores[i]),
            )
            documents.append(document)
    return tuple(documents)


def _ranks(scores: Scores) -> NDArray[np.intp]:
    """Return each document's rank, from 1. Ties keep their order, and NaN comes last."""
    best_first = np.argsort(-scores, kind="stable")
    return np.argsort(best_first) + 1
