from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.optimize.judge.statistics import FAILED, PASSED, UNDECIDED, Gate, hold, interval
from xopt.optimize.judge.verdict import SWAP

LOSS = Gate("ndcg10_drop", 0.005, at_most=True, unseen=SWAP)
TAU = Gate("tau", 0.9)


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    found = [interval(random.beta(2, 2, 60)) for _ in range(200)]
    held = [each.low <= 0.5 <= each.high for each in found]
    assert 0.86 <= np.mean(held) <= 0.98


def test_an_interval_leaves_out_queries_without_a_value() -> None:
    values = np.array([0.2, np.nan, 0.4, 0.6])
    assert interval(values).mean == pytest.approx(0.4)
    assert interval(values).queries == 3
    assert np.isnan(interval(np.array([np.nan])).mean)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_a_mean_lies_in_its_interval_and_a_higher_level_narrows_it(values: list[float]) -> None:
    found = interval(np.array(values))
    narrower = interval(np.array(values), level=0.2)
    assert found.low <= narrower.low <= found.mean <= narrower.high <= found.high


def test_an_unseen_query_widens_what_has_not_moved() -> None:
    assert interval(np.zeros(30)).high == 0
    wider = interval(np.zeros(30), unseen=0.5)
    assert -wider.low == wider.high > 0.03


def test_no_difference_on_ten_queries_is_not_the_same_but_on_many_it_is() -> None:
    few = hold(LOSS, np.zeros(10), same=False)
    assert few.verdict == UNDECIDED
    assert few.queries_needed is not None
    assert hold(LOSS, np.zeros(3 * few.queries_needed), same=False).verdict == PASSED
    assert hold(LOSS, np.zeros(10), same=True).verdict == PASSED


def test_a_loss_beyond_the_margin_fails_once_there_are_enough_queries() -> None:
    drops = np.random.default_rng(2).normal(0.05, 0.1, 400)
    assert hold(LOSS, drops, same=False).verdict == FAILED
    assert hold(LOSS, drops[:6], same=False).verdict == UNDECIDED


@pytest.mark.parametrize("gate", [TAU, LOSS])
def test_the_queries_that_would_do_do(gate: Gate) -> None:
    room = np.random.default_rng(3).normal(0.004, 0.03, 30).clip(-0.05)
    values = gate.bound - room if gate.at_most else gate.bound + room
    few = hold(gate, values, same=False)
    assert few.verdict == UNDECIDED
    assert few.queries_needed is not None
    more = np.resize(values, int(1.4 * few.queries_needed))
    less = np.resize(values, int(0.6 * few.queries_needed))
    assert hold(gate, more, same=False).verdict == PASSED
    assert hold(gate, less, same=False).verdict == UNDECIDED


def test_few_queries_pass_no_gate_however_well_they_agree() -> None:
    assert hold(TAU, np.full(9, 0.99), same=False).verdict == UNDECIDED
    assert hold(TAU, np.full(10, 0.99), same=False).verdict == PASSED
    assert hold(TAU, np.full(2, 0.5), same=False).verdict == FAILED
