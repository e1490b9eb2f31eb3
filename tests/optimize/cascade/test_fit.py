"""Orders that are learned: what their weights, errors and widths are like."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from xopt.optimize.cascade.certify import fit_first
from xopt.optimize.cascade.fit import Query, fit_order, folds
from xopt.runtime.cascade.features import Evidence
from xopt.runtime.cascade.order import Posterior


def queries_of_kinds(count: int) -> list[Query]:
    """Logits of two features that tell, of the query, of each document's own, and of what
    documents have in common.
    """
    rng = np.random.default_rng(0)
    queries = []
    for _ in range(count):
        features = rng.normal(size=(30, 5)).astype(np.float32)
        terms = sparse.csr_matrix(np.eye(6)[rng.integers(0, 6, 30)])
        noise = 2.0 * rng.normal() + terms @ rng.normal(size=6) + 0.1 * rng.normal(size=30)
        reference = 3 * features[:, 1] - features[:, 2] + noise
        queries.append(Query(Evidence(features, terms), reference, reference))
    return queries


def test_an_order_is_learned_from_what_tells_and_so_is_what_errors_have_in_common() -> None:
    queries = queries_of_kinds(60)
    order = fit_order(queries, "learned", False)
    assert np.allclose(order.weights, [0, 3, -1, 0, 0], atol=0.3)
    of_query, alike, of_terms = order.variances
    assert 2 < of_query < 7
    assert 0.6 < of_terms < 1.5
    assert alike < 0.2
    assert np.interp(0, order.widths[0], order.widths[1]) == pytest.approx(1, abs=0.25)
    assert np.all(np.diff(order.quantiles) >= 0)
    posterior = Posterior(order, queries[0].evidence)
    misses = []
    turn = np.random.default_rng(1).permutation(30)
    for row in turn.reshape(5, 6):  # what is expected of the others comes ever closer
        misses.append(np.abs(posterior.mean - queries[0].reference)[turn[24:]].mean())
        posterior.observe(row, queries[0].scores[row].astype(np.float32))
    assert misses[-1] < 0.5 < misses[0]


def test_what_is_foreseen_surely_counts_for_less() -> None:
    """Low logits miss by little, high ones by much."""
    rng = np.random.default_rng(0)
    queries = []
    for _ in range(60):
        features = rng.normal(size=(30, 2)).astype(np.float32)
        reference = 3 * features[:, 0] + np.where(features[:, 0] > 0, 2, 0.2) * rng.normal(size=30)
        queries.append(Query(Evidence(features), reference, reference))
    order = fit_order(queries, "given", False)
    low, high = np.interp([-4, 4], order.widths[0], order.widths[1])
    assert high > 3 * low


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_queries_fit_an_order_too(count: int) -> None:
    fitted = fit_first(queries_of_kinds(count), "learned", False, 10, "dcg")
    assert np.isfinite(
        [*fitted.order.weights, *fitted.order.variances, *fitted.order.quantiles]
    ).all()
    assert len(fitted.walks) == count


@pytest.mark.parametrize("count", [2, 7, 40])
def test_errors_are_of_queries_that_a_regression_was_not_fitted_on(count: int) -> None:
    queries = queries_of_kinds(count)
    held_out = []
    for others, held in folds(queries):
        assert not {id(query) for query in others} & {id(query) for query in held}
        assert len(others) + len(held) == count
        held_out += held
    assert sorted(map(id, held_out)) == sorted(map(id, queries))
