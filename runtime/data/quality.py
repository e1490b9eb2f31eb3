"""Quality: how good a ranking is by qrels, query by query.

Ties have no order: a measure is its mean over all orders of tied documents. See McSherry and
Najork 2008, "Computing information retrieval performance measures efficiently in the presence of
tied scores". Breaking them by the documents' names, as trec_eval does, would make a measure depend
on the names. Breaking them by the order of the candidates would give a scorer that tells nothing
the first stage's quality. Without ties the values are trec_eval's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from xopt.runtime.data.candidates import Candidates

__all__ = ["CUT", "discounts", "gains", "quality_by_query", "rank_weights"]

CUT = 10  # ranks that count


def rank_weights(top: int) -> NDArray[np.float64]:
    """The weights of ranks 1 to `top` in DCG."""
    weights: NDArray[np.float64] = 1 / np.log2(np.arange(top) + 2)
    return weights


DISCOUNTS = rank_weights(CUT)


def quality_by_query(
    candidates: Candidates, scores: NDArray[np.floating[Any]]
) -> dict[str, NDArray[np.float64]]:
    """nDCG@10, MRR@10 and recall@10 of the ranking by `scores`, float64[queries] each; empty
    without qrels.

    NaN for queries that are not judged. What has no finite score comes last. Gains are the
    grades, and a document is relevant from grade 1; a query without relevant documents has 0.
    """
    if not candidates.qrels:
        return {}
    groups = candidates.groups()
    found = np.full((3, len(groups)), np.nan)
    for column, (query_id, rows) in enumerate(groups.items()):
        judged = candidates.qrels.get(query_id)
        if judged:
            grades = np.array(
                [judged.get(row.doc_id, 0) for row in candidates.rows[rows]], np.float64
            )
            found[:, column] = _of_query(
                np.array([*judged.values()], np.float64), grades, scores[rows]
            )
    return dict(zip(("ndcg10", "mrr10", "recall10"), found, strict=True))


def _of_query(
    judged: NDArray[np.float64], grades: NDArray[np.float64], scores: NDArray[np.floating[Any]]
) -> tuple[float, float, float]:
    """nDCG, reciprocal rank and recall of one query; `judged` holds the grades of all its judged
    documents.
    """
    above, tied = _ranks(scores)
    ideal = np.sort(np.maximum(judged, 0))[::-1][:CUT]
    best = float(ideal @ DISCOUNTS[: len(ideal)])
    relevant = grades >= 1
    known = int((judged >= 1).sum())
    ndcg = float(np.maximum(grades, 0) @ discounts(scores)) / best if best else 0.0
    within = np.minimum(above + tied, CUT) - np.minimum(above, CUT)  # ranks of a tie that count
    recall = float((within / tied)[relevant].sum()) / known if known else 0.0
    return ndcg, _reciprocal_rank(above, tied, relevant), recall


def discounts(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """The weight of each document's rank in DCG@10: the mean over the ranks that it can have
    within its tie.
    """
    above, tied = _ranks(scores)
    seen = np.concatenate([[0.0], np.cumsum(DISCOUNTS)])
    weights: NDArray[np.float64] = (
        seen[np.minimum(above + tied, CUT)] - seen[np.minimum(above, CUT)]
    ) / tied
    return weights


def gains(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """What documents are worth by the reference's own logits, where there are no labels: their
    sigmoid.
    """
    worth: NDArray[np.float64] = 1 / (
        1 + np.exp(-np.clip(np.asarray(logits, np.float64), -500, 500))
    )
    return worth


def _ranks(scores: NDArray[np.floating[Any]]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """How many documents are ranked before each one, whatever the order of ties, and how many
    share its score.
    """
    places = -np.where(np.isnan(scores), -np.inf, scores)
    above = stats.rankdata(places, "min").astype(np.intp) - 1
    return above, stats.rankdata(places, "max").astype(np.intp) - above


def _reciprocal_rank(
    above: NDArray[np.intp], tied: NDArray[np.intp], relevant: NDArray[np.bool_]
) -> float:
    """The mean of 1 / rank of the first relevant document, 0 below the cut."""
    if not relevant.any():
        return 0.0
    first = int(above[relevant].min())
    size, good = int(tied[above == first][0]), int(relevant[above == first].sum())
    orders = math.comb(size, good)
    return sum(
        math.comb(size - 1 - skipped, good - 1) / orders / (first + skipped + 1)
        for skipped in range(min(size - good + 1, max(0, CUT - first)))
    )
