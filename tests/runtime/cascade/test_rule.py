from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.cascade.features import given_features
from xopt.runtime.cascade.loss import lost
from xopt.runtime.cascade.order import Belief, Order
from xopt.runtime.cascade.rule import Course, Rule, _added, expected_loss
from xopt.runtime.data.agreement import agreement_by_query
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.data.quality import rank_weights

ORDER = Order("given", False, 0, (0.0, -5.0), 0.0, 1.0, 1.0, tuple(np.linspace(-2, 2, 21)))
logits = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30)


def follow(rule: Rule, scores: np.ndarray, top: int = 3, order: Order = ORDER) -> Course:
    course = Course(given_features(len(scores), None), order, rule, top, "dcg")
    while len(rows := course.next()):
        course.tell(rows, scores[rows])
    return course


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0, 1))
def test_what_one_document_more_adds_is_the_dcg_with_it(worth: list[float], gain: float) -> None:
    best, weights = np.sort(worth)[::-1], rank_weights(5)
    with_it = np.sort([*worth, gain])[::-1][:5] @ weights
    assert _added(best, np.array([gain]), weights)[0] == pytest.approx(with_it - best @ weights, abs=1e-9)


@given(logits, st.integers(0, 40), st.integers(1, 12))
def test_a_course_scores_what_its_rule_says_and_ranks_all(values: list[float], depth: int, top: int) -> None:
    scores = np.array(values, np.float32)
    course = follow(Rule("depth", depth), scores, top)
    scored = np.isfinite(course.scores)
    assert scored.sum() == min(depth, len(scores))
    ranking = course.ranking()
    assert sorted(ranking) == list(range(len(scores)))
    assert scored[ranking[: scored.sum()]].all()
    assert (np.diff(scores[ranking[: scored.sum()]]) <= 0).all()


def test_the_gain_rule_scores_more_the_less_it_may_lose() -> None:
    scores = np.random.default_rng(0).normal(0, 3, 60).astype(np.float32) - np.arange(60, dtype=np.float32) / 10
    depths = [
        int(np.isfinite(follow(Rule("gain", value), scores).scores).sum()) for value in (0.5, 0.1, 0.01, 1e-3, -1.0)
    ]
    assert depths == sorted(depths)
    assert depths[0] < 60
    assert depths[-1] == 60


@given(logits, st.sets(st.integers(0, 20)), st.sampled_from([Rule("depth", 9), Rule("gain", 0.01), Rule("gain", -1)]))
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
    shape = np.zeros(1)
    scores = np.array([4.0, 3.0, 2.0])
    assert expected_loss(scores, np.array([-30.0]), np.ones(1), shape, 3) < 1e-6
    sure = expected_loss(scores, np.array([5.0]), np.ones(1), shape, 3)
    all_of_them = np.array([5.0, 4.0, 3.0, 2.0])
    ranking = np.array([1, 2, 3, 0])
    assert sure == pytest.approx(lost(all_of_them, ranking, np.ones(4, bool), 3), abs=1e-3)
    assert expected_loss(scores, np.array([5.0]), np.ones(1), shape, 3, "top") > 0.99
    assert expected_loss(scores, np.array([1.0]), np.ones(1), shape, 3, "top") == 0
    assert expected_loss(scores, np.empty(0), np.empty(0), shape, 3) == 0


@given(logits, st.integers(1, 12), st.randoms(use_true_random=False))
def test_a_loss_is_that_of_the_agreement(values: list[float], top: int, random: object) -> None:
    reference = np.array(values)
    ranking = np.random.default_rng(len(values)).permutation(len(values))
    scored = np.ones(len(values), bool)
    found = lost(reference, ranking, scored, top)
    assert 0 <= found <= 1
    assert lost(reference, np.argsort(-reference, kind="stable"), scored, top) == 0
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
    order = replace(ORDER, dimensions=2, weights=(0.0, 0.0, 0.0, 0.0), spread=2.0)
    kinds = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    belief = Belief(order, np.concatenate([np.zeros((3, 2), np.float32), kinds], 1))
    belief.tell(np.array([0]), np.array([3.0], np.float32))
    assert belief.mean[1] > belief.mean[2] > 0  # both share the query's shift, one the kind
    assert belief.spread[1] < belief.spread[2] < 2.3
    none = Belief(replace(order, dimensions=0), np.zeros((3, 4), np.float32))
    none.tell(np.array([0]), np.array([3.0], np.float32))
    assert none.mean[1] == pytest.approx(none.mean[2])
