from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from xopt.runtime.data.agreement import (
    agreement,
    broken,
    overlaps,
)
from xopt.runtime.data.candidates import Candidates, Row

# few values: many ties
SCORES = arrays(np.float32, st.integers(2, 30), elements=st.integers(-5, 5).map(float))


def one_query(n: int, relevant: int = 0) -> Candidates:
    rows = tuple(Row("q", "query", f"d{i}", "text") for i in range(n))
    return Candidates("test", rows, {"q": {f"d{relevant}": 1}})


def tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall 1945, by counting."""
    signs = [
        (np.sign(a[i] - a[j]), np.sign(b[i] - b[j]))
        for i, j in itertools.combinations(range(len(a)), 2)
    ]
    return sum(x * y for x, y in signs) / np.sqrt(
        sum(x * x for x, _ in signs) * sum(y * y for _, y in signs)
    )


@given(SCORES, st.randoms(use_true_random=False))
def test_tau_and_spearman_treat_ties_as_ties(scores: np.ndarray, random: object) -> None:
    other = np.array(random.sample(list(scores), len(scores)), np.float32)
    result = agreement(one_query(len(scores)), scores, other)
    if np.ptp(scores) > 0:
        assert result.tau == pytest.approx(tau_b(scores, other), abs=1e-6)
        assert result.spearman == pytest.approx(stats.spearmanr(scores, other).statistic, abs=1e-6)
    else:
        assert result.tau == result.spearman == 1.0


@given(SCORES)
def test_a_ranking_agrees_with_itself_and_opposes_its_inverse(scores: np.ndarray) -> None:
    candidates = one_query(len(scores))
    same = agreement(candidates, scores, scores)
    top10 = 1.0 if len(scores) > 10 else np.nan  # of ten or fewer there is nothing to choose
    assert (same.top1, same.top10, same.rbo) == pytest.approx((1.0, top10, 1.0), nan_ok=True)
    assert same.max_difference == 0.0
    assert same.tau == pytest.approx(1.0)
    if np.ptp(scores) > 0:
        assert same.inversions == 0.0
        assert agreement(candidates, scores, -scores).tau == pytest.approx(-1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_broken(bad: float) -> None:
    expected = np.arange(5, dtype=np.float32)
    damaged = expected.copy()
    damaged[2] = bad
    assert broken(one_query(5), expected, damaged) == "not finite"
    assert broken(one_query(5), expected, expected) == ""


def test_a_nan_agrees_with_nothing() -> None:
    damaged = np.array([0, 1, np.nan, 3, 4], np.float32)
    assert agreement(one_query(5), np.arange(5, dtype=np.float32), damaged).tau == 0.0


def test_constant_scores_do_not_agree_with_a_ranking() -> None:
    expected, constant = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    result = agreement(one_query(5), expected, constant)
    assert result.tau == result.spearman == 0.0
    assert result.inversions == 0.5
    assert broken(one_query(5), expected, constant) == "constant"
    assert broken(one_query(5), constant, constant) == ""


def test_overlap_counts_the_shared_best() -> None:
    expected = np.array([5, 4, 3, 2, 1], np.float32)
    assert overlaps(expected, np.array([5, 1, 3, 2, 4], np.float32))[1] == pytest.approx(0.5)
    assert overlaps(expected, expected) == pytest.approx(np.ones(5))


def orders(scores: np.ndarray) -> list[tuple[int, ...]]:
    """All strict rankings that the scores allow."""
    return [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


@given(
    arrays(np.float32, 4, elements=st.integers(0, 2).map(float)),
    arrays(np.float32, 4, elements=st.integers(0, 2).map(float)),
)
def test_overlap_with_ties_is_the_mean_over_strict_rankings(
    first: np.ndarray, second: np.ndarray
) -> None:
    def mean(a: np.ndarray, b: np.ndarray, k: int) -> float:
        return np.mean([len(set(x[:k]) & set(y[:k])) for x in orders(a) for y in orders(b)])

    for k in (1, 2, 4):
        of_each = np.sqrt(mean(first, first, k) * mean(second, second, k))
        assert overlaps(first, second)[k - 1] == pytest.approx(mean(first, second, k) / of_each)
    assert agreement(one_query(4), first, first).rbo == pytest.approx(1.0)


@given(st.permutations(range(12)))
def test_rank_biased_overlap_is_the_papers(order: list[int]) -> None:
    """Webber et al. 2010, equation 32, for two lists of the same twelve documents."""
    got = np.array(order, np.float32)
    first, second = np.arange(12)[::-1], np.argsort(-got)
    shared = [len(set(first[:d].tolist()) & set(second[:d].tolist())) for d in range(1, 13)]
    p = 0.9
    expected = shared[-1] / 12 * p**12 + (1 - p) / p * sum(
        x / d * p**d for d, x in enumerate(shared, start=1)
    )
    assert agreement(one_query(12), np.arange(12, dtype=np.float32), got).rbo == pytest.approx(
        expected, abs=1e-6
    )


def test_a_long_ranking_is_measured_in_parts() -> None:
    random = np.random.default_rng(0)
    expected, noise = random.normal(size=(2, 1000))
    got = expected + noise
    by_hand = stats.kendalltau(expected, got).statistic
    result = agreement(one_query(1000), expected, got)
    assert result.inversions == pytest.approx((1 - by_hand) / 2)
    first, second = np.argsort(-expected), np.argsort(-got)
    shares = [len(set(first[:d].tolist()) & set(second[:d].tolist())) / d for d in range(1, 1001)]
    p = 0.9
    rbo = (1 - p) * sum(share * p**d for d, share in enumerate(shares)) + p**1000
    assert result.rbo == pytest.approx(rbo, abs=1e-12)


def test_inversions_count_what_the_reference_tells_apart() -> None:
    expected, got = (
        np.array([3.0, 2.0, 1.99, 0.0], np.float32),
        np.array([2.0, 3.0, 5.0, 0.0], np.float32),
    )
    assert agreement(one_query(4), expected, got).inversions == pytest.approx(3 / 6)
    assert agreement(one_query(4), expected, got, noise=0.1).inversions == pytest.approx(2 / 5)
