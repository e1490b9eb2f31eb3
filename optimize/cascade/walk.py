"""Tries orders and stop rules on queries of which all scores are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.cascade.fit import Query, fit_order, folds
from xopt.optimize.judge.bounds import upper_bound
from xopt.runtime.cascade.loss import ranking_loss
from xopt.runtime.cascade.order import Order
from xopt.runtime.cascade.rule import PartialRanking, Rule
from xopt.runtime.progress import Step, progress

__all__ = [
    "FittedOrder",
    "Option",
    "Walk",
    "cheapest",
    "cheapest_option",
    "fit_first",
    "walk",
    "walk_all",
]

Doubles = NDArray[np.float64]

# The values of each rule, the safest first; the first one scores everything.
RULE_VALUES: dict[str, NDArray[np.float64]] = {
    "gain": np.array([-1.0, 0.0, *np.geomspace(1e-4, 0.5, 80)]),
    "depth": np.geomspace(1, 0.02, 80),  # of the deepest query's candidates
    "score": np.linspace(0, 0.98, 80),  # of all predictions, how many lie below
}
HANDICAP = 0.1  # of rules other than "gain", since few queries choose


@dataclass(frozen=True)
class Walk:
    """What an order expects and loses on a query, from no document scored to all.

    losses: after 0, 1, ... documents, scored by falling prediction.
    predicted: the predictions, falling.
    depths: after how many documents the gain rule is asked, which reorders in between.
    expected, lost: the loss that it expects there, and the loss.
    """

    losses: Doubles
    predicted: Doubles
    depths: NDArray[np.int64]
    expected: Doubles
    lost: Doubles

    def stop(self, rule: Rule, top: int) -> tuple[int, float]:
        """Return how many documents a rule scores, and what it loses."""
        if rule.kind == "gain":
            enough = np.flatnonzero(self.expected <= rule.value)
            index = int(enough[0]) if len(enough) else -1
            return int(self.depths[index]), float(self.lost[index])
        if rule.kind == "depth":
            depth = int(rule.value)
        else:
            depth = max(top, int((self.predicted >= rule.value).sum()))
        depth = min(depth, len(self.predicted))
        return depth, float(self.losses[depth])

    def share(self, rule: Rule, top: int) -> float:
        """Return the share of documents that a rule scores."""
        return self.stop(rule, top)[0] / len(self.predicted)


def walk(query: Query, order: Order, top: int, measure: str) -> Walk:
    """Follow an order through all of a query's candidates."""
    partial = PartialRanking(query.evidence, order, Rule("gain", -1.0), top, measure)
    turn = partial.remaining
    depths = []
    expected = []
    losses = []
    while len(rows := partial.next_candidates()):
        partial.add_scores(rows, query.scores[rows].astype(np.float32))
        scored = np.isfinite(partial.scores)
        depths.append(int(scored.sum()))
        expected.append(partial.expected_loss())
        ranking = partial.ranking()
        losses.append(ranking_loss(query.reference, ranking, scored, top, measure))
    return Walk(
        losses=_losses_by_depth(query, turn, top, measure),
        predicted=order.predict(query.evidence.features)[turn],
        depths=np.array(depths),
        expected=np.array(expected),
        lost=np.array(losses),
    )


def walk_all(
    queries: Sequence[Query], order: Order, top: int, measure: str, step: Step
) -> list[Walk]:
    """Follow an order through many queries, each of which is a unit of `step`."""
    walks = []
    for query in queries:
        walks.append(walk(query, order, top, measure))
        step.advance()
    return walks


def _losses_by_depth(query: Query, turn: NDArray[np.intp], top: int, measure: str) -> Doubles:
    """Return the losses if the first 0, 1, ... documents of a turn are scored."""
    scored = np.zeros(len(turn), bool)
    losses = [ranking_loss(query.reference, turn, scored, top, measure)]
    best = turn[:0]
    for depth, document in enumerate(turn, 1):
        scored[document] = True
        best = np.sort(np.append(best, document))  # ties in the order given
        best = best[np.argsort(-query.scores[best], kind="stable")][:top]
        ranking = np.concatenate([best, turn[depth:]])
        losses.append(ranking_loss(query.reference, ranking, scored, top, measure))
    return np.array(losses)


@dataclass(frozen=True)
class Option:
    """An order with a kind of rule, tried on the queries that choose.

    share: of the pairs, those scored if `max_loss` is lost, in the mean.
        To certify takes more, but so few queries say nothing of smaller losses.
    cost: the share plus the order's `own_cost`.
    """

    order: str
    rule: str
    share: float
    cost: float


@dataclass(frozen=True)
class FittedOrder:
    """An order fitted on all queries that choose.

    walks: of each of them, by an order that was fitted without it.
    own_cost: the order's time, as a share of scoring everything.
    """

    order: Order
    walks: list[Walk]
    top: int
    own_cost: float = 0.0

    def options(self, max_loss: float) -> list[Option]:
        """Try the order with each kind of rule."""
        return [self._option(kind, max_loss) for kind in RULE_VALUES]

    def rules(self, kind: str) -> list[Rule]:
        """Return the rules of a kind, the safest first."""
        values = RULE_VALUES[kind]
        if kind == "depth":
            deepest = max(len(each.predicted) for each in self.walks)
            depths = {max(self.top, round(deepest * value)) for value in values.tolist()}
            values = np.array(sorted(depths, reverse=True), np.float64)
        elif kind == "score":
            predicted = np.concatenate([each.predicted for each in self.walks])
            values = np.quantile(predicted, values)
            values[0] = -1e9  # nothing lies below
        return [Rule(kind, value) for value in values.tolist()]

    def _option(self, kind: str, max_loss: float) -> Option:
        share = 1.0
        for rule in self.rules(kind):
            if np.mean([each.stop(rule, self.top)[1] for each in self.walks]) > max_loss:
                break
            share = float(np.mean([each.share(rule, self.top) for each in self.walks]))
        return Option(self.order.kind, kind, share, share + self.own_cost)


def fit_first(
    queries: Sequence[Query],
    kind: str,
    with_score: bool,
    top: int,
    measure: str,
    own_cost: float = 0.0,
    cheaper: dict[str, Any] | None = None,
) -> FittedOrder:
    """Fit an order on the queries that choose; `cheaper` has its fields of a cheaper model."""
    walks: list[Walk] = []
    title = f"trying the order {kind}"
    with progress(title, len(queries), "queries", work=len(queries)) as step:
        for others, held_out in folds(queries):
            order = fit_order(others, kind, with_score)
            walks += walk_all(held_out, order, top, measure, step)
    order = fit_order(queries, kind, with_score)
    if cheaper:
        order = replace(order, **cheaper)
    return FittedOrder(order, walks, top, own_cost)


def cheapest_option(options: Sequence[Option]) -> Option:
    """Return the option to certify."""

    def handicapped_cost(option: Option) -> float:
        return option.cost + (0 if option.rule == "gain" else HANDICAP)

    return min(options, key=handicapped_cost)


def cheapest(
    walks: Sequence[Walk],
    rules: Sequence[Rule],
    top: int,
    max_loss: float,
    error: float | None,
    measure: str,
) -> tuple[Rule, Doubles | None]:
    """Return the last rule that is shown to lose at most `max_loss`, and its losses.

    Rules are tested in turn, the safest first. If that one fails, it is returned without.
    """
    shown: tuple[Rule, Doubles | None] = (rules[0], None)
    largest = np.zeros(len(walks))
    for rule in rules:
        losses = np.array([each.stop(rule, top)[1] for each in walks])
        if error is None:
            # Conformal risk control takes losses that never fall.
            losses = np.maximum(largest, losses)
            largest = losses
        if upper_bound(losses, error, measure == "top") > max_loss:
            break
        shown = (rule, losses)
    return shown
