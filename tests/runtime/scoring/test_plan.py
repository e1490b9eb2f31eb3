from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import Plan
from xopt.runtime.scoring.plan import WIDTH_STEP, default_plan, plan_forwards

LONGEST = 597  # no multiple of the step: some model's length
LENGTHS = st.lists(st.integers(1, LONGEST), max_size=200)


@given(LENGTHS, st.integers(1, 5000))
def test_every_pair_runs_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    forwards = plan_forwards(np.array(lengths, np.int64), tokens, LONGEST)
    rows = np.concatenate([f.rows for f in forwards]) if forwards else np.array([], int)
    assert sorted(rows) == list(range(len(lengths)))
    for forward in forwards:
        assert len(forward.rows) * forward.width <= tokens or len(forward.rows) == 1


@given(LENGTHS, st.integers(1, 5000))
def test_widths_fit_the_longest_pair_and_fall(lengths: list[int], tokens: int) -> None:
    widths = []
    for forward in plan_forwards(np.array(lengths, np.int64), tokens, LONGEST):
        longest = max(lengths[row] for row in forward.rows)
        assert longest <= forward.width < longest + WIDTH_STEP
        assert forward.width % WIDTH_STEP == 0 or forward.width == LONGEST
        widths.append(forward.width)
    assert widths == sorted(widths, reverse=True)


def test_full_forwards_are_cut_at_the_budget() -> None:
    forwards = plan_forwards(np.full(10, 100), 416, 512)
    assert [len(f.rows) for f in forwards] == [4, 4, 2]


@pytest.mark.parametrize("backend", ["onnx", "torch"])
@pytest.mark.parametrize("threads", [1, 2, 16])
def test_default_plans_use_the_threads_given(backend: str, threads: int) -> None:
    plan = default_plan(backend, threads)
    assert plan.callers * plan.threads == threads


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="at least 1"):
        Plan(callers=0, threads=1, tokens=512)


@given(LENGTHS, st.integers(1, 5000), st.sampled_from([8, 16]))
def test_with_a_step_there_are_two_shapes_a_width(
    lengths: list[int], tokens: int, step: int
) -> None:
    forwards = plan_forwards(np.array(lengths, np.int64), tokens, LONGEST, step)
    assert sorted(row for forward in forwards for row in forward.rows) == list(range(len(lengths)))
    for forward in forwards:
        full = max(1, tokens // forward.width)
        assert len(forward.rows) in (1, full)
        assert {min(-(-lengths[row] // step) * step, LONGEST) for row in forward.rows} == {
            forward.width
        }
    # and no more of single pairs than are left over
    for width in {forward.width for forward in forwards}:
        full = max(1, tokens // width)
        assert sum(len(f.rows) == 1 for f in forwards if f.width == width) < full or full == 1


@given(LENGTHS, st.integers(1, 5000))
def test_pairs_of_equal_length_run_together_without_padding(
    lengths: list[int], tokens: int
) -> None:
    forwards = plan_forwards(np.array(lengths, np.int64), tokens, LONGEST, step=1)
    assert sorted(row for forward in forwards for row in forward.rows) == list(range(len(lengths)))
    for forward in forwards:
        assert {lengths[row] for row in forward.rows} == {forward.width}
        assert len(forward.rows) * forward.width <= tokens or len(forward.rows) == 1
    for length in set(lengths):  # and no more forwards than the budget asks for
        full = max(1, tokens // length)
        assert sum(f.width == length for f in forwards) == -(-lengths.count(length) // full)


def test_a_long_pair_is_not_padded() -> None:
    long, short = plan_forwards(np.array([2051, 51]), 512, 4096)
    assert (long.rows.tolist(), long.width) == ([0], 2051)
    assert (short.rows.tolist(), short.width) == ([1], 56)
