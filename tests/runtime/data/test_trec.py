from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from xopt.runtime.data.trec import read_qrels, read_run
from xopt.runtime.errors import BadInput


def test_a_run_is_ranked_by_score_then_by_rank_then_by_line(tmp_path: Path) -> None:
    file = tmp_path / "a.run"
    file.write_text(
        "q1 Q0 d3 3 2.5 tag\nq2 Q0 d1 1 -1e-3 tag\n\n"
        "q1 Q0 d1 1 2.5 tag\nq1 Q0 d0 9 3 tag\nq1 Q0 d2 3 2.5 tag\n"
    )
    run = read_run(file)
    assert run == {"q1": {"d0": 3.0, "d1": 2.5, "d3": 2.5, "d2": 2.5}, "q2": {"d1": -0.001}}
    assert list(run["q1"]) == ["d0", "d1", "d3", "d2"]


@pytest.mark.parametrize("tag", ["\ttag", ""])
@pytest.mark.parametrize("doc_id", ["my doc", "my  doc two", "a\u00a0b", "1", "Q0"])
def test_ids_hold_blanks_where_tabs_separate(tmp_path: Path, doc_id: str, tag: str) -> None:
    file = tmp_path / "a.run"
    file.write_text(f"my q\tQ0\t{doc_id}\t1\t12.5{tag}\n", encoding="utf-8")
    assert read_run(file) == {"my q": {doc_id: 12.5}}


def test_a_no_break_space_separates_nothing_and_columns_may_be_aligned(tmp_path: Path) -> None:
    file = tmp_path / "a.run"
    file.write_text("q1  Q0  a\u00a0b   1  12.5  tag\n q1 Q0 d2 2 1.5\n", encoding="utf-8")
    assert read_run(file) == {"q1": {"a\u00a0b": 12.5, "d2": 1.5}}


def test_gzipped_runs_and_qrels_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.run.gz").write_bytes(gzip.compress(b"q1 Q0 d1 1 2.0 tag\n"))
    (tmp_path / "qrels.gz").write_bytes(gzip.compress(b"q1 0 d1 1\n"))
    assert read_run(tmp_path / "a.run.gz") == {"q1": {"d1": 2.0}}
    assert read_qrels(tmp_path / "qrels.gz") == {"q1": {"d1": 1}}
    (tmp_path / "a.run.gz").write_bytes(
        gzip.compress(b"".join(b"q1 Q0 d%d 1 2.0 tag\n" % i for i in range(99)))[:-9]
    )
    with pytest.raises(BadInput, match=r"a.run.gz: cannot be read"):
        read_run(tmp_path / "a.run.gz")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 Q0 d1", r"a.run:2: expected query, Q0, document"),
        (
            "q1 Q0 my doc 1 12.5 tag",
            r"a.run:2: expected query, Q0, document, .* put tabs between fields",
        ),
        # no tag, and an id with a blank
        ("q1 Q0 my doc 1 12.5", r"a.run:2: expected query, Q0, document"),
        ("q1 Q0 doc 5 1 12.5", r"a.run:2: expected query, Q0, document"),
        ("q1 Q0\tmy doc\t1\t12.5", r"a.run:2: expected query, Q0, document"),
        ("q1 Q0 d1 nan 1.5 tag", r"a.run:2: expected query"),
        ("q1 Q0 d1 1 1_000 tag", r"a.run:2: expected query"),
        ("q1\tmy doc\t1\t12.5", r"a.run:2: expected query, Q0, document"),
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
    "text",
    [
        "q1 0 d1 1\nq1 0 d2 0\n",
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n",
        "q1\td1\t1\nq1\td2\t0\n",
    ],
)
def test_qrels_have_trecs_columns_or_beirs(tmp_path: Path, text: str) -> None:
    file = tmp_path / "qrels"
    file.write_text(text)
    assert read_qrels(file) == {"q1": {"d1": 1, "d2": 0}}


def test_bad_qrels_are_named(tmp_path: Path) -> None:
    file = tmp_path / "qrels"
    for line, message in (
        ("q1 0 d2 much", r"qrels:2: relevance is 'much', not a whole number"),
        ("q1 0 d2 0.5", r"qrels:2: relevance is '0.5', not a whole number"),
        ("q1 0 d1 0", r"qrels:2: document 'd1' of query 'q1' has another grade than in .*qrels:1"),
        ("q1 0 my doc 1", r"qrels:2: expected query, 0, document and a whole grade"),
        ("q1 my doc 1", r"qrels:2: expected query, 0, document and a whole grade"),
        ("q1 0\td1\t1", r"qrels:2: expected query, 0, document and a whole grade"),
        ("q1\t0 d1\t1", r"qrels:2: expected query, 0, document and a whole grade"),
        ("my q d1 1", r"qrels:2: expected query, 0, document and a whole grade"),
        ("q1 1", r"qrels:2: expected query, 0, document and a whole grade"),
    ):
        file.write_text(f"q1 0 d1 1\n{line}\n")
        with pytest.raises(BadInput, match=message):
            read_qrels(file)


def test_whole_floats_are_grades_nan_is_none_and_the_same_twice_is_once(tmp_path: Path) -> None:
    file = tmp_path / "qrels"
    file.write_text("q1\tmy doc\t1.0\nq1\td2\tnan\nq1\tmy doc\t1\nq1\td3\t\n")
    assert read_qrels(file) == {"q1": {"my doc": 1}}
