from __future__ import annotations

from pathlib import Path

import pytest

from xopt.runtime.data.trec import read_qrels, read_run
from xopt.runtime.errors import BadInput


def test_a_run_is_read_in_its_order(tmp_path: Path) -> None:
    file = tmp_path / "a.run"
    file.write_text("q1 Q0 d2 1 2.5 tag\nq2 Q0 d1 1 -1e-3 tag\n\nq1 Q0 d1 2 2.5 tag\n")
    assert read_run(file) == {"q1": {"d2": 2.5, "d1": 2.5}, "q2": {"d1": -0.001}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 d1", r"a.run:2: expected query, Q0, document"),
        ("q1 Q0 d1 1 high tag", r"a.run:2: expected query"),
        ("q1 Q0 d1 1 nan tag", r"a.run:2: the score of document 'd1' is nan, not a finite"),
        ("q1 Q0 d1 1 inf tag", r"a.run:2: the score of document 'd1' is inf, not a finite"),
        ("q1 Q0 d0 2 0.1 tag", r"a.run:2: document 'd0' is ranked twice for query 'q1'"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.run"
    file.write_text(f"q1 Q0 d0 1 0.5 tag\n{line}\n")
    with pytest.raises(BadInput, match=message):
        read_run(file)


def test_an_empty_or_missing_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.run").touch()
    with pytest.raises(BadInput, match=r"a.run: an empty run"):
        read_run(tmp_path / "a.run")
    with pytest.raises(BadInput, match=r"b.run: cannot be read"):
        read_run(tmp_path / "b.run")


@pytest.mark.parametrize(
    "text", ["q1 0 d1 1\nq1 0 d2 0\n", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n", "q1\td1\t1\nq1\td2\t0\n"]
)
def test_qrels_have_trecs_columns_or_beirs(tmp_path: Path, text: str) -> None:
    file = tmp_path / "qrels"
    file.write_text(text)
    assert read_qrels(file) == {"q1": {"d1": 1, "d2": 0}}


def test_bad_qrels_are_named(tmp_path: Path) -> None:
    file = tmp_path / "qrels"
    file.write_text("q1 0 d1 1\nq1 0 d2 much\n")
    with pytest.raises(BadInput, match=r"qrels:2: expected query, 0, document and a whole grade"):
        read_qrels(file)
