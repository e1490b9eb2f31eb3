"""Looking several times errs no more than looking once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.edges import AT_THE_EDGE, Values, taus
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xopt.optimize.judge.looks import FIRST_LOOK, look_sizes, one_sided_levels
from xopt.optimize.judge.statistics import ALPHA, FAILED, PASSED, UNDECIDED, Gate, hold

RUNS = 3000


def test_one_look_has_the_whole_error() -> None:
    assert one_sided_levels([40], ALPHA) == pytest.approx([ALPHA], abs=1e-4)


@given(st.integers(1, 20_000))
def test_looks_double_and_end_with_all_queries(queries: int) -> None:
    sizes = look_sizes(queries)
    assert sizes[-1] == queries
    assert all(later >= 4 / 3 * size for size, later in itertools.pairwise(sizes))
    assert sizes[0] == min(FIRST_LOOK, queries) or len(sizes) == 1


@pytest.mark.parametrize("queries", [100, 300, 1000, 5000])
def test_a_brownian_motion_crosses_the_bounds_as_often_as_it_may(queries: int) -> None:
    sizes = look_sizes(queries)
    steps = np.random.default_rng(0).normal(size=(100_000, len(sizes)))
    steps *= np.sqrt(np.diff([0, *sizes]))
    motions = steps.cumsum(1) / np.sqrt(sizes)
    bounds = stats.norm.isf(one_sided_levels(sizes, ALPHA))
    assert (motions > bounds).any(1).mean() == pytest.approx(ALPHA, abs=0.003)
    # what looking several times at one bound does
    assert (motions > stats.norm.isf(ALPHA)).any(1).mean() > 1.5 * ALPHA


@pytest.mark.parametrize(
    ("gate", "values"), AT_THE_EDGE, ids=lambda value: getattr(value, "measure", "")
)
def test_at_a_gates_edge_few_pass_with_all_looks(gate: Gate, values: Values) -> None:
    random = np.random.default_rng(3)
    sizes = look_sizes(300)
    levels = one_sided_levels(sizes, ALPHA)
    verdicts = [first_decision(gate, values(random, 300), sizes, levels) for _ in range(RUNS)]
    assert verdicts.count(PASSED) / RUNS <= 0.05


def first_decision(gate: Gate, drawn: np.ndarray, sizes: list[int], levels: list[float]) -> str:
    for size, level in zip(sizes, levels, strict=True):
        verdict = hold(gate, drawn[:size], False, level).verdict
        if verdict != UNDECIDED:
            return verdict
    return UNDECIDED


@pytest.mark.parametrize(("shift", "verdict"), [(0.05, PASSED), (-0.05, FAILED)])
def test_what_is_clear_is_decided_at_the_first_look(shift: float, verdict: str) -> None:
    random = np.random.default_rng(4)
    sizes = look_sizes(5000)
    level = one_sided_levels(sizes, ALPHA)[0]
    found = [
        hold(Gate("tau", 0.93), taus(random, sizes[0]) + shift, False, level).verdict
        for _ in range(200)
    ]
    assert found.count(verdict) > 90
    assert not set(found) - {verdict, UNDECIDED}
