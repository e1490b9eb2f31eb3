from __future__ import annotations

import itertools

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from xopt.runtime.agreement import agreement, first_stage_scores, quality, top_overlap
from xopt.runtime.candidates import Candidates, Row

SCORES = arrays(np.float32, st.integers(2, 30), elements=st.integers(-5, 5).map(float))  # few values: many ties


def one_query(n: int, relevant: int = 0) -> Candidates:
    rows = tuple(Row("q", "query", f"d{i}", "text") for i in range(n))
    return Candidates("test", rows, {"q": {f"d{relevant}": 1}})


def tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall 1945, by counting."""
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in itertools.combinations(range(len(a)), 2)]
    return sum(x * y for x, y in signs) / np.sqrt(sum(x * x for x, _ in signs) * sum(y * y for _, y in signs))


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
    assert (same.top1, same.top10, same.max_difference) == (1.0, 1.0, 0.0)
    assert same.tau == pytest.approx(1.0)
    if np.ptp(scores) > 0:
        assert agreement(candidates, scores, -scores).tau == pytest.approx(-1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_do_not_agree(bad: float) -> None:
    expected = np.arange(5, dtype=np.float32)
    broken = expected.copy()
    broken[2] = bad
    assert agreement(one_query(5), expected, broken).tau == 0.0


def test_constant_scores_do_not_agree_with_a_ranking() -> None:
    result = agreement(one_query(5), np.arange(5, dtype=np.float32), np.zeros(5, np.float32))
    assert result.tau == result.spearman == 0.0


def test_overlap_counts_the_shared_best() -> None:
    expected = np.array([5, 4, 3, 2, 1], np.float32)
    assert top_overlap(expected, np.array([5, 1, 3, 2, 4], np.float32), 2) == 0.5
    assert top_overlap(expected, expected, 10) == 1.0


@given(SCORES, st.integers(0, 29))
def test_quality_is_ir_measures(scores: np.ndarray, relevant: int) -> None:
    distinct = scores + np.arange(len(scores), dtype=np.float32) / 100  # ties are broken differently by each tool
    candidates = one_query(len(scores), relevant % len(scores))
    run = {"q": {row.doc_id: float(s) for row, s in zip(candidates.rows, distinct, strict=True)}}
    expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.RR @ 10], candidates.qrels, run)
    measured = quality(candidates, distinct)
    assert measured == pytest.approx(
        {"ndcg10": expected[ir_measures.nDCG @ 10], "mrr10": expected[ir_measures.RR @ 10]}
    )


def test_the_first_stage_ranks_in_the_order_given() -> None:
    candidates = one_query(20, relevant=2)
    assert quality(candidates, first_stage_scores(candidates))["mrr10"] == pytest.approx(1 / 3)


def test_no_qrels_no_quality() -> None:
    assert quality(Candidates("test", one_query(3).rows), np.zeros(3, np.float32)) == {}
