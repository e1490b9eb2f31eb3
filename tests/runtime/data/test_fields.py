from __future__ import annotations

from typing import Any

import pytest

from xopt.runtime.data.fields import first_scores, grade_of
from xopt.runtime.errors import BadInput


@pytest.mark.parametrize(
    "value", [None, float("nan"), "", "  ", "nan", "NaN", "null", "NULL", "none", "None"]
)
def test_what_stands_for_a_missing_number_is_no_grade(value: Any) -> None:
    assert grade_of(value, "a row") is None


@pytest.mark.parametrize(
    ("value", "grade"), [(0, 0), ("2", 2), (1.0, 1), (True, 1), (" 3 ", 3), (-1, -1)]
)
def test_whole_numbers_are_grades_however_they_are_written(value: Any, grade: int) -> None:
    assert grade_of(value, "a row") == grade


@pytest.mark.parametrize("value", [0.5, "1.5", "many", "1_000", "٣", float("inf"), 1 << 40, [], {}])
def test_what_is_no_grade_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(BadInput, match=r"a row: relevance is .*, not a whole number"):
        grade_of(value, "a row")


@pytest.mark.parametrize("value", [None, "", "nan", float("inf"), True, "high"])
def test_a_first_stage_score_is_a_finite_number(value: Any) -> None:
    with pytest.raises(BadInput, match=r"a row: bm25 is .*, not a score"):
        first_scores([value], "bm25", lambda _: "a row")
    assert first_scores(["-1.5"], "bm25", str).to_pylist() == [-1.5]
