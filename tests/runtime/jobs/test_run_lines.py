from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.data.trec import read_run
from xopt.runtime.jobs.output import run_lines
from xopt.runtime.scoring.ranking import ranked

FLOATS = st.floats(width=32, allow_infinity=False)
LIMITS = [np.finfo(np.float32).min, np.finfo(np.float32).max, 0.0, -0.0, np.nan, 1e-45]


@given(st.lists(st.one_of(FLOATS, st.sampled_from(LIMITS)), min_size=1, max_size=30))
def test_scores_of_a_run_fall_from_line_to_line(values: list[float]) -> None:
    scores = np.array(values, np.float32)
    order, ranks = ranked(scores)
    ids = [f"d{row}" for row in order]
    lines = run_lines(["q"] * len(ids), ids, ranks[order], scores[order])
    written = [np.float32(line.split()[4]) for line in lines]
    assert all(np.isfinite(written))
    assert all(first > second for first, second in itertools.pairwise(written))


def test_a_run_with_ties_is_read_back_in_its_order(tmp_path: Path) -> None:
    scores = np.array([1.5, 1.5, 1.5, np.nan, np.nan] * 2, np.float32)
    queries = np.repeat([0, 1], 5)
    order, ranks = ranked(scores, queries)
    names = [f"q{queries[row]}" for row in order]
    ids = [f"d{9 - row}" for row in order]
    lines = run_lines(names, ids, ranks[order], scores[order])
    (tmp_path / "a.run").write_text("\n".join(lines))
    assert [list(found) for found in read_run(tmp_path / "a.run").values()] == [ids[:5], ids[5:]]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([1.0, 3.0, 2.0], [1, 2, 0]), ([np.nan, -np.inf, 1.0], [2, 1, 0]), ([1.0, 1.0], [0, 1])],
)
def test_the_best_come_first_and_ties_as_they_came(
    scores: list[float], expected: list[int]
) -> None:
    order, ranks = ranked(np.array(scores, np.float32))
    assert order.tolist() == expected
    assert ranks[order].tolist() == list(range(1, len(scores) + 1))
