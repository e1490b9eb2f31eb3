"""Agreement: how far a variant's ranking equals the reference's.

Each measure is computed query by query, so that means have intervals; see
`xopt.optimize.judge.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from xopt.runtime.data.candidates import Candidates
from xopt.runtime.data.quality import discounts, gains

__all__ = [
    "TOPS",
    "Agreement",
    "agreement",
    "agreement_by_query",
    "broken",
    "differences",
    "first_stage_scores",
    "overlaps",
]

Scores = NDArray[np.floating[Any]]
# a value a query, in the candidates' order; NaN where it has none
ByQuery = dict[str, NDArray[np.float64]]

TOPS = (1, 3, 5, 10)
# of rank-biased overlap: 86 % of the weight is on the first ten ranks (Webber et al. 2010)
PERSISTENCE = 0.9
DEPTH = 400  # of rank-biased overlap: what lies deeper weighs less than a float64 can tell
BLOCK = 256  # documents compared with all others at once


@dataclass(frozen=True)
class Agreement:
    """Two rankings of the same candidates: means over queries, differences of logits over pairs.

    - tau: Kendall's tau-b (Kendall 1945).
    - spearman: Spearman's rho.
    - rbo: rank-biased overlap, p = 0.9.
    - top1 to top10: the share of the reference's best k among the variant's.
    - inversions: of the pairs of documents that the reference tells apart, the share that the
      variant puts the other way round.
    - dcg10_loss: the share of DCG@10 that the variant's order loses against the reference's.
      A document's gain is the sigmoid of the reference's logit. So it needs no labels, and what
      the reference finds irrelevant weighs nothing.

    Ties are ties in all of them. tau, spearman and inversions are over queries with at least two
    candidates. top k is over those with more than k: of fewer there is nothing to choose.
    """

    tau: float
    spearman: float
    rbo: float
    top1: float
    top3: float
    top5: float
    top10: float
    inversions: float
    dcg10_loss: float
    mean_difference: float
    max_difference: float


def agreement(
    candidates: Candidates, reference: Scores, scores: Scores, noise: float = 0.0
) -> Agreement:
    """Compare float32[n] logits of the candidates' rows with the reference's; NaN of what no
    query has.

    See `agreement_by_query`.
    """
    means = {
        name: float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
        for name, values in agreement_by_query(candidates, reference, scores, noise).items()
    }
    return Agreement(**means, **differences(reference, scores))


def differences(reference: Scores, scores: Scores) -> dict[str, float]:
    """The mean and the largest absolute difference of logits, of what is finite in both."""
    difference = np.abs(reference.astype(np.float64) - scores)
    difference = difference[np.isfinite(difference)]
    mean, largest = (
        (float(difference.mean()), float(difference.max())) if difference.size else (np.nan, np.nan)
    )
    return {"mean_difference": mean, "max_difference": largest}


def agreement_by_query(
    candidates: Candidates, reference: Scores, scores: Scores, noise: float = 0.0
) -> ByQuery:
    """The measures of `Agreement` by name, float64[queries] each.

    The reference tells documents apart whose logits differ by more than `noise`. A query with a NaN
    among its scores, or with constant scores on one side only, has tau and spearman 0.
    """
    rows: list[tuple[float, ...]] = []
    for group in candidates.groups().values():
        expected, got = reference[group], scores[group]
        tau, rho = (
            _correlation(measure, expected, got) for measure in (stats.kendalltau, stats.spearmanr)
        )
        shares = overlaps(expected, got)
        tops = [shares[k - 1] if k < len(expected) else np.nan for k in TOPS]
        loss = _dcg_loss(expected, got)
        rows.append(
            (tau, rho, _rank_biased(shares), *tops, _inversions(expected, got, noise), loss)
        )
    columns = np.array(rows, np.float64).T
    names = ("tau", "spearman", "rbo", *(f"top{k}" for k in TOPS), "inversions", "dcg10_loss")
    return dict(zip(names, columns, strict=True))


def _correlation(measure: Callable[..., Any], expected: Scores, got: Scores) -> float:
    if len(got) < 2:
        return np.nan
    if np.isnan(got).any():
        return 0.0
    # what has no score, -inf, is last and tied
    ranks = stats.rankdata(expected), stats.rankdata(got)
    constant = [np.ptp(rank) == 0 for rank in ranks]
    return float(all(constant)) if any(constant) else float(measure(*ranks).statistic)


def overlaps(expected: Scores, got: Scores) -> NDArray[np.float64]:
    """The agreement of the best d of both, for each depth d, up to `DEPTH`: float64[depths].

    A document counts by its chance to be among the best d when ties are broken at random. The sum
    of products is divided by what each ranking reaches with itself, as tau-b is. This is RBO^b's
    agreement in Corsi and Urbano 2024, arXiv:2406.07121. Without ties it is the share of common
    documents.
    """
    chances = [_chances(scores) for scores in (expected, got)]
    common, first, second = (
        np.einsum("id,id->d", a, b) for a, b in (chances, chances[:1] * 2, chances[1:] * 2)
    )
    shares: NDArray[np.float64] = common / np.sqrt(first * second)
    return shares


def _chances(scores: Scores) -> NDArray[np.float64]:
    """float64[documents, depths]: the chance to be among the best d, ties broken at random."""
    places = -np.where(np.isnan(scores), -np.inf, scores)  # what has no score comes last
    above = stats.rankdata(places, "min")[:, None] - 1
    tied = stats.rankdata(places, "max")[:, None] - above
    depths = np.arange(1, min(len(scores), DEPTH) + 1)
    chances: NDArray[np.float64] = np.clip((depths - above) / tied, 0, 1)
    return chances


def _rank_biased(shares: NDArray[np.float64]) -> float:
    """Rank-biased overlap, extrapolated (Webber et al. 2010, equation 32)."""
    weights = (1 - PERSISTENCE) * PERSISTENCE ** np.arange(len(shares))
    return float(weights @ shares + PERSISTENCE ** len(shares) * shares[-1])


def _inversions(expected: Scores, got: Scores, noise: float) -> float:
    """The share of pairs that `expected` tells apart by more than `noise` and `got` reverses; a
    tie is half of one.
    """
    apart = better = worse = 0
    for start in range(0, len(expected), BLOCK):  # all at once would be n^2 numbers
        rows = slice(start, start + BLOCK)
        above = expected[rows, None].astype(np.float64) - expected > noise
        apart += int(above.sum())
        better += int((above & (got[rows, None] > got)).sum())
        worse += int((above & (got[rows, None] < got)).sum())
    return (apart - better + worse) / (2 * apart) if apart else np.nan


def _dcg_loss(expected: Scores, got: Scores) -> float:
    if len(expected) < 2:
        return np.nan
    worth = gains(expected)
    return 1 - float(worth @ discounts(got)) / float(worth @ discounts(expected))


def broken(candidates: Candidates, reference: Scores, scores: Scores) -> str:
    """Why these scores rank nothing: "not finite" or "constant"; empty where they are sound.

    Minus infinity stands for a document that has no score.
    """
    if np.isnan(scores).any() or np.isposinf(scores).any():
        return "not finite"
    groups = [g for g in candidates.groups().values() if np.ptp(reference[g]) > 0]
    return "constant" if groups and all(scores[g].min() == scores[g].max() for g in groups) else ""


def first_stage_scores(candidates: Candidates) -> Scores:
    """Scores that keep the first stage's order: what reranking has to beat."""
    scores = np.empty(len(candidates.rows), np.float32)
    for rows in candidates.groups().values():
        scores[rows] = -np.arange(rows.stop - rows.start)
    return scores
