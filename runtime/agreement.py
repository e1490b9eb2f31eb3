"""Agreement: how far a variant's ranking equals the reference's. Quality: how good a ranking is by qrels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ir_measures
import numpy as np
from ir_measures import RR, nDCG
from numpy.typing import NDArray
from scipy import stats

from xopt.runtime.candidates import Candidates

__all__ = ["Agreement", "agreement", "first_stage_scores", "quality", "top_overlap"]

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """Two rankings of the same candidates, compared query by query; means over queries, differences over pairs.

    tau: Kendall's tau-b (Kendall 1945), spearman: Spearman's rho, both with ties as ties and over
    queries with at least two candidates; a query whose scores are constant on one side only, or not
    finite, counts 0. top1, top10: the share of the reference's best k that the variant's best k hold.
    """

    tau: float
    spearman: float
    top1: float
    top10: float
    mean_difference: float
    max_difference: float


def agreement(candidates: Candidates, reference: Scores, scores: Scores) -> Agreement:
    """Compare float32[n] logits of the candidates' rows with the reference's."""
    taus, rhos, top1, top10 = [], [], [], []
    for rows in candidates.groups().values():
        expected, got = reference[rows], scores[rows]
        if len(got) > 1:
            taus.append(_correlation(stats.kendalltau, expected, got))
            rhos.append(_correlation(stats.spearmanr, expected, got))
        top1.append(top_overlap(expected, got, 1))
        top10.append(top_overlap(expected, got, 10))
    difference = np.abs(reference.astype(np.float64) - scores)
    return Agreement(
        float(np.mean(taus)) if taus else 1.0,
        float(np.mean(rhos)) if rhos else 1.0,
        float(np.mean(top1)),
        float(np.mean(top10)),
        float(difference.mean()),
        float(difference.max()),
    )


def _correlation(measure: Callable[..., Any], expected: Scores, got: Scores) -> float:
    if not np.isfinite(got).all():
        return 0.0
    if np.ptp(expected) == 0 or np.ptp(got) == 0:
        return float(np.ptp(expected) == np.ptp(got))
    return float(measure(expected, got).statistic)


def top_overlap(expected: Scores, got: Scores, k: int) -> float:
    """The share of the k best by `expected` that are among the k best by `got`; ties go to the earlier row."""
    k = min(k, len(expected))
    best, found = (set(np.argsort(-s, kind="stable")[:k].tolist()) for s in (expected, got))
    return len(best & found) / k


def quality(candidates: Candidates, scores: Scores) -> dict[str, float]:
    """nDCG@10 and MRR@10 of the ranking by `scores`, mean over judged queries; empty without qrels."""
    if not candidates.qrels:
        return {}
    run = [
        ir_measures.ScoredDoc(row.query_id, row.doc_id, float(score))
        for row, score in zip(candidates.rows, scores, strict=True)
    ]
    qrels = [ir_measures.Qrel(q, d, grade) for q, judged in candidates.qrels.items() for d, grade in judged.items()]
    measured = ir_measures.calc_aggregate([nDCG @ 10, RR @ 10], qrels, run)
    return {"ndcg10": float(measured[nDCG @ 10]), "mrr10": float(measured[RR @ 10])}


def first_stage_scores(candidates: Candidates) -> Scores:
    """Scores that keep the first stage's order: what reranking has to beat."""
    scores = np.empty(len(candidates.rows), np.float32)
    for rows in candidates.groups().values():
        scores[rows] = -np.arange(rows.stop - rows.start)
    return scores
