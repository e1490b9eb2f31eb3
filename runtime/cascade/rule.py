"""Stop rules: when a query needs no more of its candidates scored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.features import Evidence
from xopt.runtime.cascade.order import QUANTILE_MASSES, Order, Posterior
from xopt.runtime.data.quality import gains, rank_weights

__all__ = ["PartialRanking", "Rule", "expected_loss"]

Doubles = NDArray[np.float64]
Rows = NDArray[np.intp]

LEAST_BLOCK = 8  # documents to score before the gain rule is asked again
SCORED_A_BLOCK = 12  # or a twelfth of those scored: small blocks take long
LOGIT_GRID = np.linspace(-30.0, 30.0, 481)  # between which gains are interpolated


@dataclass(frozen=True)
class Rule:
    """When to stop.

    "depth": after so many documents.
    "score": below this predicted logit, but not before `top` documents.
    "gain": at this `expected_loss`.
    """

    kind: str
    value: float


def expected_loss(
    scores: NDArray[np.floating],
    mean: Doubles,
    std: Doubles,
    quantiles: Doubles,
    top: int,
    measure: str = "dcg",
) -> float:
    """Return what stopping now is expected to lose.

    scores: the logits of scored documents.
    mean, std, quantiles: the others' logits are `mean` plus `std` times a quantile.

    "dcg": the share of DCG@top that the others would add, each by itself and summed.
    "top": the probability that one of the others is among the best `top`.
    """
    if not len(mean):
        return 0.0
    logits = mean[:, None] + std[:, None] * quantiles
    best = np.sort(scores)[::-1][:top]
    if measure == "top":
        threshold = best[top - 1] if len(best) == top else -math.inf
        above = (logits > threshold).astype(np.float64) @ QUANTILE_MASSES
        log_none_above = np.log1p(-np.clip(above, 0, 1 - 1e-9)).sum()
        return float(-np.expm1(log_none_above))
    best_gains = np.zeros(top)
    best_gains[: len(best)] = gains(best)
    weights = rank_weights(top)
    rises = _dcg_rise(best_gains, gains(LOGIT_GRID), weights)
    added = float(np.interp(logits, LOGIT_GRID, rises).sum(0) @ QUANTILE_MASSES)
    return added / max(added + float(best_gains @ weights), 1e-300)


def _dcg_rise(best_gains: Doubles, new_gains: Doubles, weights: Doubles) -> Doubles:
    """Return how much DCG rises if a document of each new gain joins the best."""
    ranks = np.searchsorted(-best_gains, -new_gains, side="right")
    one_rank_down = np.append(weights[1:], 0.0) - weights
    # From each rank on, what all documents lose by moving one rank down.
    change = np.append(np.cumsum((best_gains * one_rank_down)[::-1])[::-1], 0.0)
    rise: Doubles = new_gains * np.append(weights, 0.0)[ranks] + change[ranks]
    return rise


class PartialRanking:
    """A query's candidates, some of which have been scored.

    scores: float32[documents], NaN if not scored.
    remaining: those not scored yet, in the order to score them.
    not_finite: those with a logit that is not finite.
    """

    def __init__(
        self, evidence: Evidence, order: Order, rule: Rule, top: int, measure: str
    ) -> None:
        self.rule = rule
        self.top = top
        self.measure = measure
        self.posterior = Posterior(order, evidence)
        self.quantiles = np.array(order.quantiles)
        self.scores = np.full(len(evidence.features), np.nan, np.float32)
        self.remaining = np.argsort(-self.posterior.mean, kind="stable")
        self.not_finite = np.empty(0, np.intp)

    def next_candidates(self) -> Rows:
        """Return what to score next, none if the rule stops."""
        return self.remaining[: self._next_size()]

    def add_scores(self, candidates: Rows, scores: NDArray[np.float32]) -> None:
        """Add the logits of what `next_candidates` returned."""
        self.remaining = self.remaining[len(candidates) :]
        finite = np.isfinite(scores)
        self.not_finite = np.concatenate([self.not_finite, candidates[~finite]])
        self.scores[candidates[finite]] = scores[finite]
        if self.rule.kind == "gain" and len(self.remaining):
            self.posterior.observe(candidates[finite], scores[finite])
            by_mean = np.argsort(-self.posterior.mean[self.remaining], kind="stable")
            self.remaining = self.remaining[by_mean]

    def ranking(self) -> Rows:
        """Return all: those scored, best first, those remaining, those not finite."""
        scored = np.flatnonzero(np.isfinite(self.scores))  # ties in the order given
        best_first = scored[np.argsort(-self.scores[scored], kind="stable")]
        return np.concatenate([best_first, self.remaining, self.not_finite])

    def expected_loss(self) -> float:
        """Return what stopping now is expected to lose."""
        scored = np.isfinite(self.scores)
        if not scored.any():
            return 1.0
        return expected_loss(
            self.scores[scored],
            self.posterior.mean[self.remaining],
            self.posterior.std[self.remaining],
            self.quantiles,
            self.top,
            self.measure,
        )

    def _next_size(self) -> int:
        """Return how many to score before the rule is asked again."""
        scored = len(self.scores) - len(self.remaining)
        if self.rule.kind == "depth":
            return max(0, int(self.rule.value) - scored)
        if self.rule.kind == "score":
            promising = int((self.posterior.prior >= self.rule.value).sum())
            return max(0, promising - scored) if scored else max(self.top, promising)
        if not len(self.remaining) or self.expected_loss() <= self.rule.value:
            return 0
        if not scored:
            return max(LEAST_BLOCK, self.top)
        return max(LEAST_BLOCK, scored // SCORED_A_BLOCK)
