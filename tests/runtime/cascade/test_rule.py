from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import norm

from xopt.runtime.cascade.features import Evidence, given_features
from xopt.runtime.cascade.loss import ranking_loss
from xopt.runtime.cascade.order import (
    NOISE_SHARE,
    QUANTILE_LEVELS,
    ErrorCovariance,
    Order,
    Posterior,
)
from xopt.runtime.cascade.rule import PartialRanking, Rule, _dcg_rise, expected_loss
from xopt.runtime.data.agreement import agreement_by_query
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.data.quality import rank_weights

ORDER = Order(
    kind="given",
    with_score=False,
    weights=(0.0, -5.0),
    bias=0.0,
    scale=(1.0, 1.0),
    variances=(1.0, 0.2, 0.8),
    widths=((0.0,), (1.0,)),
    quantiles=tuple(norm.ppf(QUANTILE_LEVELS).tolist()),
)
ROUNDING = 1e-12  # of sums, whose order is the processor's; losses that count are over 1e-4
logits = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30)


def follow(rule: Rule, scores: np.ndarray, top: int = 3, order: Order = ORDER) -> PartialRanking:
    evidence = Evidence(given_features(len(scores), None))
    partial = PartialRanking(evidence, order, rule, top, "dcg")
    while len(rows := partial.next_candidates()):
        partial.add_scores(rows, scores[rows])
    return partial


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0, 1))
def test_what_one_document_more_adds_is_the_dcg_with_it(worth: list[float], gain: float) -> None:
    best = np.sort(worth)[::-1]
    weights = rank_weights(5)
    with_it = np.sort([*worth, gain])[::-1][:5] @ weights
    assert _dcg_rise(best, np.array([gain]), weights)[0] == pytest.approx(
        with_it - best @ weights, abs=1e-9
    )


@given(logits, st.integers(0, 40), st.integers(1, 12))
def test_a_partial_ranking_scores_what_its_rule_says_and_ranks_all(
    values: list[float], depth: int, top: int
) -> None:
    scores = np.array(values, np.float32)
    partial = follow(Rule("depth", depth), scores, top)
    scored = np.isfinite(partial.scores)
    assert scored.sum() == min(depth, len(scores))
    ranking = partial.ranking()
    assert sorted(ranking) == list(range(len(scores)))
    assert scored[ranking[: scored.sum()]].all()
    assert (np.diff(scores[ranking[: scored.sum()]]) <= 0).all()


def test_the_gain_rule_scores_more_the_less_it_may_lose() -> None:
    scores = (
        np.random.default_rng(0).normal(0, 3, 60).astype(np.float32)
        - np.arange(60, dtype=np.float32) / 10
    )
    depths = [
        int(np.isfinite(follow(Rule("gain", value), scores).scores).sum())
        for value in (0.5, 0.1, 0.01, 1e-3, -1.0)
    ]
    assert depths == sorted(depths)
    assert depths[0] < 60
    assert depths[-1] == 60


def test_blocks_grow_with_what_has_been_scored() -> None:
    evidence = Evidence(given_features(500, None))
    partial = PartialRanking(evidence, ORDER, Rule("gain", -1.0), 10, "dcg")
    blocks = []
    scored = 0
    while len(rows := partial.next_candidates()):
        partial.add_scores(rows, np.zeros(len(rows), np.float32))
        blocks.append(len(rows))
        assert len(rows) <= max(10, 8, scored // 12)
        scored += len(rows)
    assert scored == 500
    assert blocks[:12] == [10] + 11 * [8]
    assert sorted(blocks[1:-1]) == blocks[1:-1]
    assert blocks[-2] > 30


@given(
    logits,
    st.sets(st.integers(0, 20)),
    st.sampled_from([Rule("depth", 9), Rule("gain", 0.01), Rule("gain", -1)]),
)
def test_a_score_that_is_not_finite_tells_nothing_and_comes_last(
    values: list[float], places: set[int], rule: Rule
) -> None:
    scores = np.array(values, np.float32)
    scores[[place for place in places if place < len(scores)]] = np.nan
    partial = follow(rule, scores)
    ranking = partial.ranking().tolist()
    not_finite = set(partial.not_finite.tolist())
    assert sorted(ranking) == list(range(len(scores)))
    assert set(ranking[len(ranking) - len(not_finite) :]) == not_finite
    assert not_finite <= set(np.flatnonzero(np.isnan(scores)).tolist())
    assert np.isfinite(partial.posterior.mean).all()


def test_the_score_rule_scores_what_is_promising_and_the_best_ranks() -> None:
    scores = np.zeros(40, np.float32)
    predicted = ORDER.predict(given_features(40, None))
    few = follow(Rule("score", float(predicted[4])), scores, top=2)
    assert np.flatnonzero(np.isfinite(few.scores)).tolist() == [0, 1, 2, 3, 4]
    none = follow(Rule("score", 1e9), scores, top=2)
    assert np.flatnonzero(np.isfinite(none.scores)).tolist() == [0, 1]


def test_hopeless_documents_add_nothing_and_certain_ones_their_worth() -> None:
    shape = np.zeros(len(QUANTILE_LEVELS))
    scores = np.array([4.0, 3.0, 2.0])
    assert expected_loss(scores, np.array([-30.0]), np.ones(1), shape, 3) < 1e-6
    sure = expected_loss(scores, np.array([5.0]), np.ones(1), shape, 3)
    all_of_them = np.array([5.0, 4.0, 3.0, 2.0])
    ranking = np.array([1, 2, 3, 0])
    assert sure == pytest.approx(ranking_loss(all_of_them, ranking, np.ones(4, bool), 3), abs=1e-3)
    assert expected_loss(scores, np.array([5.0]), np.ones(1), shape, 3, "top") > 0.99
    assert expected_loss(scores, np.array([1.0]), np.ones(1), shape, 3, "top") <= ROUNDING
    assert expected_loss(scores, np.empty(0), np.empty(0), shape, 3) == 0


@given(logits, st.integers(1, 12), st.randoms(use_true_random=False))
def test_a_loss_is_that_of_the_agreement(values: list[float], top: int, random: object) -> None:
    reference = np.array(values)
    ranking = np.random.default_rng(len(values)).permutation(len(values))
    scored = np.ones(len(values), bool)
    found = ranking_loss(reference, ranking, scored, top)
    assert -ROUNDING <= found <= 1 + ROUNDING
    assert (
        abs(ranking_loss(reference, np.argsort(-reference, kind="stable"), scored, top)) <= ROUNDING
    )
    if top == 10 and len(values) > 1:
        scores = np.empty(len(values))
        scores[ranking] = -np.arange(len(values))
        rows = tuple(Row("q", "q", str(i), "") for i in range(len(values)))
        assert found == pytest.approx(
            agreement_by_query(Candidates("c", rows), reference, scores)["dcg10_loss"][0], abs=1e-9
        )


def test_the_best_are_lost_where_one_of_them_is_not_scored() -> None:
    reference = np.array([3.0, 1.0, 2.0, 0.0])
    ranking = np.array([0, 1, 2, 3])
    assert ranking_loss(reference, ranking, np.array([True, False, True, False]), 2, "top") == 0
    assert ranking_loss(reference, ranking, np.array([True, True, False, True]), 2, "top") == 1


def test_scores_tell_of_documents_of_their_kind() -> None:
    features = np.array([[0, 0], [0, 0], [9, 9], [0, 0]], np.float32)
    terms = sparse.csr_matrix([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    order = replace(ORDER, weights=(0.0, 0.0))
    posterior = Posterior(order, Evidence(features, terms))
    posterior.observe(np.array([0]), np.array([3.0], np.float32))
    # All share the query's part, and beside it a copy both others, one other the terms, one the
    # features.
    assert posterior.mean[1] > posterior.mean[2] > posterior.mean[3] > 0
    assert posterior.std[1] < posterior.std[2] < posterior.std[3] < np.sqrt(2)
    without = Posterior(order, Evidence(features))
    without.observe(np.array([0]), np.array([3.0], np.float32))
    assert without.mean[1] == pytest.approx(without.mean[3])
    assert without.mean[1] > without.mean[2]


@given(st.integers(1, 12), st.lists(st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_a_posterior_is_that_of_all_scores_at_once(
    count: int, blocks: list[int], copies: bool
) -> None:
    """Observed block by block (Rasmussen and Williams 2006, equations 2.23 and 2.24)."""
    rng = np.random.default_rng(count)
    features = rng.normal(size=(count, 2)).astype(np.float32)
    terms = np.abs(rng.normal(size=(count, 4)))
    if copies:
        features[:] = features[0]
        terms[:] = terms[0]
    evidence = Evidence(
        features, sparse.csr_matrix(terms / np.linalg.norm(terms, axis=1, keepdims=True))
    )
    scores = rng.normal(size=count).astype(np.float32)
    turn = rng.permutation(count)
    observed = 0
    posterior = Posterior(ORDER, evidence)
    for block in blocks:
        rows = turn[observed : observed + block]
        if len(rows):
            posterior.observe(rows, scores[rows])
        observed += len(rows)
    rows = turn[:observed]
    others = turn[observed:]
    variances = np.array(ORDER.variances)
    shared = np.tensordot(
        variances, ErrorCovariance(evidence, ORDER.scale).components(np.arange(count)), 1
    )
    known = shared[np.ix_(rows, rows)] + NOISE_SHARE * variances.sum() * np.eye(observed)
    solved = np.linalg.solve(known, shared[rows])
    assert np.allclose(
        posterior.mean, posterior.prior + solved.T @ (scores - posterior.prior)[rows], atol=1e-6
    )
    spread = np.sqrt(variances.sum() - np.einsum("ij,ij->j", shared[rows], solved))
    least = np.sqrt(0.02 * variances.sum())
    assert np.allclose(posterior.std[others], np.maximum(spread, least)[others])
