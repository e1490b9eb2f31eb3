"""Stop rules: when a query needs no more of its candidates scored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.features import Evidence
from xopt.runtime.cascade.order import MASSES, Belief, Order
from xopt.runtime.data.quality import gains, rank_weights

__all__ = ["BLOCK", "Course", "Rule", "expected_loss"]

Doubles = NDArray[np.float64]

BLOCK = 8  # documents that are scored before a query's rule is asked again, at least
# and the part of those scored that are: a query far from its end is not held up by small blocks
SHARE = 12
GRID = np.linspace(-30.0, 30.0, 481)  # of logits, between which a document's gain is interpolated


@dataclass(frozen=True)
class Rule:
    """When to stop: "depth", after so many documents; "score", below this predicted logit;
    "gain", once the documents left are expected to add at most this share to what the best are
    worth (or, for the measure "top", to be among them with this probability).
    """

    kind: str
    value: float


def expected_loss(
    scores: NDArray[np.floating],
    mean: Doubles,
    spread: Doubles,
    shape: Doubles,
    top: int,
    measure: str = "dcg",
) -> float:
    """What stopping here is expected to lose.

    `scores` are the logits of the documents scored, `mean` and `spread` those expected of the
    others, with errors of this `shape`, quantiles in units of the spread. "dcg": what the others
    would add to DCG@top, each by itself and added up, as a share of what it would then be. "top":
    the probability that one of them belongs among the best `top`.
    """
    if not len(mean):
        return 0.0
    nodes = mean[:, None] + spread[:, None] * shape
    best = np.sort(scores)[::-1][:top]
    if measure == "top":
        last = best[top - 1] if len(best) == top else -math.inf
        belongs = (nodes > last).astype(np.float64) @ MASSES
        return float(-np.expm1(np.log1p(-np.clip(belongs, 0, 1 - 1e-9)).sum()))
    worth = np.zeros(top)
    worth[: len(best)] = gains(best)
    added = float(
        np.interp(nodes, GRID, _added(worth, gains(GRID), rank_weights(top))).sum(0) @ MASSES
    )
    return added / max(added + float(worth @ rank_weights(top)), 1e-300)


def _added(worth: Doubles, gain: Doubles, weights: Doubles) -> Doubles:
    """By how much DCG rises when a document of each `gain` is put in its place among those worth
    `worth`, falling.
    """
    ranks = np.searchsorted(-worth, -gain, side="right")  # how many stay before it
    moved = np.append(weights[1:], 0.0) - weights  # what one rank down costs
    costs = np.append(np.cumsum((worth * moved)[::-1])[::-1], 0.0)  # of all from a rank on
    rise: Doubles = gain * np.append(weights, 0.0)[ranks] + costs[ranks]
    return rise


class Course:
    """One query on its way: what to score next, until its rule stops."""

    def __init__(
        self, evidence: Evidence, order: Order, rule: Rule, top: int, measure: str
    ) -> None:
        self.rule, self.top, self.measure = rule, top, measure
        self.belief = Belief(order, evidence)
        self.shape = np.array(order.quantiles)
        self.scores = np.full(len(evidence.features), np.nan, np.float32)
        self.left = np.argsort(-self.belief.mean, kind="stable")
        self.not_finite = np.empty(0, np.intp)  # candidates whose scores are none: they come last

    def next(self) -> NDArray[np.intp]:
        """The candidates to score now; none where it is enough."""
        return self.left[: self._more()]

    def tell(self, candidates: NDArray[np.intp], scores: NDArray[np.float32]) -> None:
        """The logits of the candidates that `next` gave, of which one that is not finite tells
        nothing.
        """
        self.left = self.left[len(candidates) :]
        finite = np.isfinite(scores)
        self.not_finite = np.concatenate([self.not_finite, candidates[~finite]])
        candidates, scores = candidates[finite], scores[finite]
        self.scores[candidates] = scores
        if self.rule.kind == "gain" and len(self.left):
            self.belief.tell(candidates, scores)
            self.left = self.left[np.argsort(-self.belief.mean[self.left], kind="stable")]

    def ranking(self) -> NDArray[np.intp]:
        """All candidates, best first: the scored ones by their scores, then the others as they
        are expected.
        """
        seen = np.flatnonzero(np.isfinite(self.scores))  # ties in the order given
        return np.concatenate(
            [seen[np.argsort(-self.scores[seen], kind="stable")], self.left, self.not_finite]
        )

    def loss(self) -> float:
        """What stopping now is expected to lose."""
        seen, own = np.isfinite(self.scores), self.belief
        if not seen.any():
            return 1.0
        mean, spread = own.mean[self.left], own.spread[self.left]
        return expected_loss(self.scores[seen], mean, spread, self.shape, self.top, self.measure)

    def _more(self) -> int:
        """How many of those left are to be scored before the next question."""
        scored = len(self.scores) - len(self.left)
        if self.rule.kind == "depth":
            return max(0, int(self.rule.value) - scored)
        if self.rule.kind == "score":
            return max(
                0 if scored else self.top,
                int((self.belief.prior >= self.rule.value).sum()) - scored,
            )
        if len(self.left) and self.loss() > self.rule.value:
            return max(BLOCK, scored // SHARE if scored else self.top)
        return 0
