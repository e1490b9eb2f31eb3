from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import norm

from xopt.runtime.cascade.features import Evidence, given_features
from xopt.runtime.cascade.loss import lost
from xopt.runtime.cascade.order import LEVELS, NOISE, Belief, Likeness, Order
from xopt.runtime.cascade.rule import Course, Rule, _added, expected_loss
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
    quantiles=tuple(norm.ppf(LEVELS).tolist()),
)
ROUNDING = 1e-12  # of sums, whose order is the processor's; losses that count are over 1e-4
logits = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30)


def follow(rule: Rule, scores: np.ndarray, top: int = 3, order: Order = ORDER) -> Course:
    course = Course(Evidence(given_features(len(scores), None)), order, rule, top, "dcg")
    while len(rows := course.next()):
        course.tell(rows, scores[rows])
    return course


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0, 1))
def test_what_one_document_more_adds_is_the_dcg_with_it(worth: list[float], gain: float) -> None:
    best, weights = np.sort(worth)[::-1], rank_weights(5)
    with_it = np.sort([*worth, gain])[::-1][:5] @ weights
    assert _added(best, np.array([gain]), weights)[0] == pytest.approx(
        with_it - best @ weights, abs=1e-9
    )


@given(logits, st.integers(0, 40), st.integers(1, 12))
def test_a_course_scores_what_its_rule_says_and_ranks_all(
    values: list[float], depth: int, top: int
) -> None:
    scores = np.array(values, np.float32)
    course = follow(Rule("depth", depth), scores, top)
    scored = np.isfinite(course.scores)
    assert scored.sum() == min(depth, len(scores))
    ranking = course.ranking()
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
    course, blocks, scored = (
        Course(Evidence(given_features(500, None)), ORDER, Rule("gain", -1.0), 10, "dcg"),
        [],
        0,
    )
    while len(rows := course.next()):
        course.tell(rows, np.zeros(len(rows), np.float32))
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
    values: list[float], lost: set[int], rule: Rule
) -> None:
    scores = np.array(values, np.float32)
    scores[[place for place in lost if place < len(scores)]] = np.nan
    course = follow(rule, scores)
    ranking, told = course.ranking().tolist(), set(course.not_finite.tolist())
    assert sorted(ranking) == list(range(len(scores)))
    assert set(ranking[len(ranking) - len(told) :]) == told
    assert told <= set(np.flatnonzero(np.isnan(scores)).tolist())
    assert np.isfinite(course.belief.mean).all()


def test_the_score_rule_scores_what_is_promising_and_the_best_ranks() -> None:
    scores = np.zeros(40, np.float32)
    predicted = ORDER.predict(given_features(40, None))
    few = follow(Rule("score", float(predicted[4])), scores, top=2)
    assert np.flatnonzero(np.isfinite(few.scores)).tolist() == [0, 1, 2, 3, 4]
    none = follow(Rule("score", 1e9), scores, top=2)
    assert np.flatnonzero(np.isfinite(none.scores)).tolist() == [0, 1]


def test_hopeless_documents_add_nothing_and_certain_ones_their_worth() -> None:
    shape = np.zeros(len(LEVELS))
    scores = np.array([4.0, 3.0, 2.0])
    assert expected_loss(scores, np.array([-30.0]), np.ones(1), shape, 3) < 1e-6
    sure = expected_loss(scores, np.array([5.0]), np.ones(1), shape, 3)
    all_of_them = np.array([5.0, 4.0, 3.0, 2.0])
    ranking = np.array([1, 2, 3, 0])
    assert sure == pytest.approx(lost(all_of_them, ranking, np.ones(4, bool), 3), abs=1e-3)
    assert expected_loss(scores, np.array([5.0]), np.ones(1), shape, 3, "top") > 0.99
    assert expected_loss(scores, np.array([1.0]), np.ones(1), shape, 3, "top") <= ROUNDING
    assert expected_loss(scores, np.empty(0), np.empty(0), shape, 3) == 0


@given(logits, st.integers(1, 12), st.randoms(use_true_random=False))
def test_a_loss_is_that_of_the_agreement(values: list[float], top: int, random: object) -> None:
    reference = np.array(values)
    ranking = np.random.default_rng(len(values)).permutation(len(values))
    scored = np.ones(len(values), bool)
    found = lost(reference, ranking, scored, top)
    assert -ROUNDING <= found <= 1 + ROUNDING
    assert abs(lost(reference, np.argsort(-reference, kind="stable"), scored, top)) <= ROUNDING
    if top == 10 and len(values) > 1:
        scores = np.empty(len(values))
        scores[ranking] = -np.arange(len(values))
        rows = tuple(Row("q", "q", str(i), "") for i in range(len(values)))
        assert found == pytest.approx(
            agreement_by_query(Candidates("c", rows), reference, scores)["dcg10_loss"][0], abs=1e-9
        )


def test_the_best_are_lost_where_one_of_them_is_not_scored() -> None:
    reference, ranking = np.array([3.0, 1.0, 2.0, 0.0]), np.array([0, 1, 2, 3])
    assert lost(reference, ranking, np.array([True, False, True, False]), 2, "top") == 0
    assert lost(reference, ranking, np.array([True, True, False, True]), 2, "top") == 1


def test_scores_tell_of_documents_of_their_kind() -> None:
    features = np.array([[0, 0], [0, 0], [9, 9], [0, 0]], np.float32)
    terms = sparse.csr_matrix([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    order = replace(ORDER, weights=(0.0, 0.0))
    belief = Belief(order, Evidence(features, terms))
    belief.tell(np.array([0]), np.array([3.0], np.float32))
    # All share the query's part, and beside it a copy both others, one other the terms, one the
    # features.
    assert belief.mean[1] > belief.mean[2] > belief.mean[3] > 0
    assert belief.spread[1] < belief.spread[2] < belief.spread[3] < np.sqrt(2)
    without = Belief(order, Evidence(features))
    without.tell(np.array([0]), np.array([3.0], np.float32))
    assert without.mean[1] == pytest.approx(without.mean[3])
    assert without.mean[1] > without.mean[2]


@given(st.integers(1, 12), st.lists(st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_a_belief_is_the_gaussian_process_of_all_that_was_told(
    count: int, blocks: list[int], copies: bool
) -> None:
    """Told block by block, as if told at once (Rasmussen and Williams 2006, equations 2.23 and
    2.24).
    """
    rng = np.random.default_rng(count)
    features = rng.normal(size=(count, 2)).astype(np.float32)
    terms = np.abs(rng.normal(size=(count, 4)))
    if copies:
        features[:], terms[:] = features[0], terms[0]
    evidence = Evidence(
        features, sparse.csr_matrix(terms / np.linalg.norm(terms, axis=1, keepdims=True))
    )
    scores, turn, told = rng.normal(size=count).astype(np.float32), rng.permutation(count), 0
    belief = Belief(ORDER, evidence)
    for block in blocks:
        rows = turn[told : told + block]
        if len(rows):
            belief.tell(rows, scores[rows])
        told += len(rows)
    rows, variances = turn[:told], np.array(ORDER.variances)
    shared = np.tensordot(variances, Likeness(evidence, ORDER.scale).parts(np.arange(count)), 1)
    known = shared[np.ix_(rows, rows)] + NOISE * variances.sum() * np.eye(told)
    solved = np.linalg.solve(known, shared[rows])
    assert np.allclose(
        belief.mean, belief.prior + solved.T @ (scores - belief.prior)[rows], atol=1e-6
    )
    spread = np.sqrt(variances.sum() - np.einsum("ij,ij->j", shared[rows], solved))
    assert np.allclose(
        belief.spread[turn[told:]], np.maximum(spread, np.sqrt(0.02 * variances.sum()))[turn[told:]]
    )
