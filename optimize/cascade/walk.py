"""What an order loses, by the depth that it is followed to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.cascade.fit import Query
from xopt.runtime.cascade.loss import lost
from xopt.runtime.cascade.order import Order
from xopt.runtime.cascade.rule import Course, Rule
from xopt.runtime.data.quality import gains, rank_weights

__all__ = ["Walk", "walk"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Walk:
    """A query followed to its end.

    losses: float64[depth + 1], by documents scored in the order's own turn; predicted: their
    predictions, falling. For the gain rule, whose turn follows the scores: the depths at which it
    asks, what it expects to lose there, and loses.
    """

    losses: Doubles
    predicted: Doubles
    depths: NDArray[np.int64]
    expected: Doubles
    lost: Doubles

    def stop(self, rule: Rule, top: int) -> tuple[int, float]:
        """How many documents a rule scores, and what is lost."""
        count = len(self.predicted)
        if rule.kind == "gain":
            enough = np.flatnonzero(self.expected <= rule.value)
            asked = int(enough[0]) if len(enough) else -1
            return int(self.depths[asked]), float(self.lost[asked])
        depth = (
            int(rule.value)
            if rule.kind == "depth"
            else max(top, int((self.predicted >= rule.value).sum()))
        )
        return min(depth, count), float(self.losses[min(depth, count)])


def walk(query: Query, order: Order, top: int, measure: str) -> Walk:
    """Follow an order through all of a query's candidates."""
    course = Course(query.evidence, order, Rule("gain", -1.0), top, measure)
    turn, found = course.left, []
    while len(rows := course.next()):
        course.tell(rows, query.scores[rows].astype(np.float32))
        scored = np.isfinite(course.scores)
        loss = lost(query.reference, course.ranking(), scored, top, measure)
        found.append((int(scored.sum()), course.loss(), loss))
    depths, expected, losses = zip(*found, strict=True)
    return Walk(
        _losses(query, turn, top, measure),
        order.predict(query.evidence.features)[turn],
        np.array(depths),
        np.array(expected),
        np.array(losses),
    )


def _losses(query: Query, turn: NDArray[np.intp], top: int, measure: str) -> Doubles:
    """What is lost where the first 0, 1, ... documents of a turn are scored."""
    count = len(turn)
    if measure == "top":
        best = np.argsort(-query.reference, kind="stable")[:top]
        needed = 1 + int(np.flatnonzero(np.isin(turn, best)).max())
        return (np.arange(count + 1) < needed).astype(np.float64)
    worth, weights = gains(query.reference), rank_weights(top)
    best_worth = float(np.sort(worth)[::-1][:top] @ weights[: min(top, count)])
    losses, leading = np.empty(count + 1), np.empty(0, np.intp)
    for depth in range(count + 1):
        if depth:
            leading = np.sort(np.append(leading, turn[depth - 1]))  # ties in the order given
            leading = leading[np.argsort(-query.scores[leading], kind="stable")][:top]
        filled = np.concatenate([leading, turn[depth : depth + top - len(leading)]])
        losses[depth] = 1 - float(worth[filled] @ weights[: len(filled)]) / best_worth
    return np.clip(losses, 0, 1)
