from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.optimize.judge.bounds import least_mean, queries_needed, rounded_up, upper_bound

ERROR = 0.05


@pytest.mark.parametrize(
    ("limit", "sure", "expected"), [(0.05, 59, 19), (0.02, 149, 49), (0.01, 299, 99)]
)
def test_how_many_queries_it_takes(limit: float, sure: int, expected: int) -> None:
    assert queries_needed(limit, ERROR) == sure
    assert queries_needed(limit, None) == expected
    assert least_mean(sure, ERROR) <= limit < least_mean(sure - 1, ERROR)
    assert least_mean(expected, None) <= limit < least_mean(expected - 1, None)


@given(st.integers(1, 2000), st.sampled_from([ERROR, 0.2, None]))
def test_what_is_advised_is_enough(queries: int, error: float | None) -> None:
    advised = rounded_up(least_mean(queries, error))
    assert queries_needed(float(f"{advised:g}"), error) <= queries
    assert least_mean(queries, error) <= advised < 1.1 * least_mean(queries, error)


@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=50), st.sampled_from([ERROR, None]))
def test_a_bound_lies_over_the_mean_and_grows_with_each_loss(
    losses: list[float], error: float | None
) -> None:
    values = np.array(losses)
    bound = upper_bound(values, error)
    assert values.mean() <= bound <= 1
    more = np.append(values[1:], min(1.0, values[0] + 0.1))
    assert upper_bound(more, error) >= bound - 1e-12


@pytest.mark.parametrize("binary", [False, True])
def test_a_mean_at_the_limit_is_taken_for_less_in_one_case_of_twenty(binary: bool) -> None:
    """Of skewed losses: 2 % of all queries lose everything, or half of everything."""
    rng = np.random.default_rng(0)
    worst = 1.0 if binary else 0.5
    below = 0
    for _ in range(2000):
        losses = np.where(rng.random(300) < 0.02, worst, 0.0)
        below += upper_bound(losses, ERROR, binary) <= 0.02 * worst
    assert below / 2000 <= ERROR + 0.01


def test_without_a_loss_both_tests_are_one() -> None:
    none = np.zeros(77)
    assert upper_bound(none, ERROR) == pytest.approx(upper_bound(none, ERROR, binary=True))
    assert upper_bound(np.ones(3), ERROR) == upper_bound(np.ones(3), ERROR, binary=True) == 1
