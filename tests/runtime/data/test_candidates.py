from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from xopt.runtime.data.agreement import first_stage_scores
from xopt.runtime.data.candidates import Candidates, demo_candidates, preparing, read_candidates
from xopt.runtime.data.columns import Columns
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.errors import BadInput

ROWS = [
    {"query_id": "1", "query": "a query", "doc_id": "x", "text": "first", "relevance": 1},
    {"query_id": "2", "query": "another", "doc_id": "y", "text": "second", "relevance": 0},
    {"query_id": "1", "query": "a query", "doc_id": "z", "text": "", "relevance": None},
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix in {".csv", ".tsv"}:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("\n".join([mark.join(rows[0]), *lines]) + "\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_files_give_candidates_by_query(tmp_path: Path, suffix: str) -> None:
    found = read_candidates(str(write(tmp_path / f"rows{suffix}", ROWS)))
    assert [(row.query_id, row.doc_id) for row in found.rows] == [
        ("1", "x"),
        ("1", "z"),
        ("2", "y"),
    ]
    assert found.groups() == {"1": slice(0, 2), "2": slice(2, 3)}
    assert found.qrels == {"1": {"x": 1}, "2": {"y": 0}}
    drawn = read_candidates(str(tmp_path / f"rows{suffix}"), queries=1)
    assert set(drawn.qrels) == {row.query_id for row in drawn.rows} == set(drawn.groups())
    assert len(drawn.groups()) == 1
    assert len(read_candidates(str(tmp_path / f"rows{suffix}"), depth=1).rows) == 2


def test_pairs_without_ids_are_grouped_by_their_query(tmp_path: Path) -> None:
    plain = write(
        tmp_path / "pairs.jsonl", [{"query": row["query"], "text": row["text"]} for row in ROWS]
    )
    found = read_candidates(str(plain))
    assert found.groups() == {"a query": slice(0, 2), "another": slice(2, 3)}
    assert [row.doc_id for row in found.rows] == ["row 1", "row 3", "row 2"]
    assert found.qrels == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"query_id": "1", "query": "a", "doc_id": "x"}',
            r"rows.jsonl:2: text is None, not a text",
        ),
        (
            '{"query_id": "1", "query": "a", "doc_id": "x", "text": null}',
            r"rows.jsonl:2: text is None",
        ),
        (
            '{"query_id": "1", "query": " ", "doc_id": "x", "text": "b"}',
            r"rows.jsonl:2: query is ' '",
        ),
        (
            '{"query_id": "1", "query": "a", "doc_id": "y", "text": "b", "relevance": "yes"}',
            r"relevance is 'yes'",
        ),
        (
            '{"query_id": null, "query": "a", "doc_id": "y", "text": "b"}',
            r"rows.jsonl:2: query_id is None, not an id",
        ),
        ("[1, 2]", r"rows.jsonl:2: not a JSON object"),
        ("{oops", r"rows.jsonl:2: not JSON"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(BadInput, match=message):
        read_candidates(str(path))


def test_odd_files_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    excel = tmp_path / "excel.csv"
    excel.write_text(
        "query_id,query,doc_id,text\n1,a query,x," + "long " * 50_000 + "\n", encoding="utf-8-sig"
    )
    assert len(read_candidates(str(excel)).rows[0].text) > 131_072
    latin = tmp_path / "latin.csv"
    latin.write_text("query_id,query,doc_id,text\n1,Zürich,x,text\n", encoding="latin-1")
    with pytest.raises(BadInput, match=r"latin.csv: cannot be read .* UTF-8"):
        read_candidates(str(latin))
    twice = write(tmp_path / "twice.jsonl", [ROWS[0], ROWS[0]])
    with pytest.raises(
        BadInput,
        match=r"twice.jsonl:2: document 'x' stands twice among the candidates of '1', first in",
    ):
        read_candidates(str(twice))
    for grade in (0.5, float("inf"), "yes"):
        with pytest.raises(BadInput, match="not a whole number"):
            read_candidates(
                str(write(tmp_path / "graded.jsonl", [{**ROWS[0], "relevance": grade}]))
            )


def test_missing_empty_and_unknown_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_candidates(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(BadInput, match=r"empty.jsonl: no candidates in it"):
        read_candidates(str(tmp_path / "empty.jsonl"))
    (tmp_path / "rows.xls").touch()
    with pytest.raises(BadInput, match="unknown kind"):
        read_candidates(str(tmp_path / "rows.xls"))
    (tmp_path / "rows.parquet").write_text("not parquet")
    with pytest.raises(BadInput, match="not a Parquet file"):
        read_candidates(str(tmp_path / "rows.parquet"))


def test_datasets_by_id_need_their_package_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, data in (("ir_datasets", "irds:beir/scifact/test"), ("datasets", "hf:org/name")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            BadInput, match=rf"{data}: needs the package {package} \(pip install {package}\)"
        ):
            read_candidates(data)


def test_a_hugging_face_dataset_gives_its_rows(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    folder = tmp_path / "pairs"
    folder.mkdir()
    write(folder / "test.jsonl", ROWS)
    found = read_candidates(f"hf:{folder}")
    assert [(row.query_id, row.doc_id) for row in found.rows] == [
        ("1", "x"),
        ("1", "z"),
        ("2", "y"),
    ]
    with pytest.raises(BadInput, match=r"split 'dev' cannot be loaded"):
        read_candidates(f"hf:{folder}", split="dev")


def test_a_part_of_the_queries_prepares_and_the_rest_judges() -> None:
    docs = demo_candidates(queries=40, depth=3)
    first, second = docs.split()
    assert (len(first.groups()), len(second.groups())) == (8, 32)
    assert not set(first.groups()) & set(second.groups())
    assert set(first.qrels) == set(first.groups())
    again = Candidates("other order", tuple(reversed(docs.rows)), docs.qrels)
    assert set(again.split()[0].groups()) == set(first.groups())
    twice = Candidates(
        "twice",
        tuple(replace(row, query_id=f"{row.query_id}{n}") for n in "ab" for row in docs.rows),
    )
    texts = [{row.query for row in part.rows} for part in twice.split()]
    assert not texts[0] & texts[1]  # two ids of one text stay together
    same = Candidates("same", tuple(replace(row, query="one text") for row in docs.rows))
    assert (same.split()[0].rows, same.split()[1].rows) == ((), same.rows)
    assert preparing(same).name == "demo"
    alone = docs.between(0, 1)
    assert (alone.split()[0].rows, alone.split()[1].rows) == ((), alone.rows)
    assert preparing(alone).name == "demo"
    mixed = docs.shuffled()
    assert mixed.rows != docs.rows
    assert set(mixed.rows) == set(docs.rows)
    assert mixed.between(3, 5).rows == mixed.rows[9:15]
    assert mixed.between(40, 50).rows == ()


def test_demo_data_is_deterministic_and_holds_the_relevant_text() -> None:
    first, second = demo_candidates(queries=10, depth=6), demo_candidates(queries=10, depth=6)
    assert first == second
    assert len(first.groups()) == 10
    for query_id, rows in first.groups().items():
        doc_ids = [row.doc_id for row in first.rows[rows]]
        assert len(set(doc_ids)) == 6
        assert query_id in doc_ids
        assert first.qrels[query_id] == {query_id: 1}
    assert 0 < quality_by_query(first, first_stage_scores(first))["ndcg10"].mean() < 1


def test_demo_is_the_built_in_data_whatever_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert len(read_candidates("demo", queries=2).groups()) == 2
    with pytest.raises(BadInput, match=r"demo: no .jsonl, .* and no corpus.jsonl"):
        read_candidates("./demo")


def test_a_column_holds_the_first_stage_s_scores(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "text": text, "bm25": score}
        for text, score in (("b", 1), ("c", 2.5), ("d", "0.5"))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [
        row.first_score for row in read_candidates(str(file), columns=Columns(first="bm25")).rows
    ] == [
        2.5,
        1,
        0.5,
    ]
    assert [
        row.text for row in read_candidates(str(file), columns=Columns(first="bm25"), depth=2).rows
    ] == [
        "c",
        "b",
    ]
    assert [row.text for row in read_candidates(str(file), depth=2).rows] == ["b", "c"]
    assert [row.first_score for row in read_candidates(str(file)).rows] == [None] * 3
    with pytest.raises(BadInput, match=r"rows.jsonl: no column 'tfidf', only query, text, bm25"):
        read_candidates(str(file), columns=Columns(first="tfidf"))
    for value in ("null", '"many"', "true", "1e999", "[]"):
        file.write_text(f'{{"query": "a", "text": "b", "bm25": {value}}}\n')
        with pytest.raises(BadInput, match=r"rows.jsonl:1: bm25 is .*, not a score"):
            read_candidates(str(file), columns=Columns(first="bm25"))
    with pytest.raises(BadInput, match="demo: has no column 'bm25'"):
        read_candidates("demo", columns=Columns(first="bm25"))


def test_columns_that_are_not_asked_for_may_hold_what_python_has_not(tmp_path: Path) -> None:
    file, far = tmp_path / "rows.parquet", pyarrow.array([1 << 50], pyarrow.timestamp("ms"))
    table = pyarrow.table({"query": ["a"], "text": ["b"], "until": far})
    pyarrow.parquet.write_table(table, file)
    assert [row.text for row in read_candidates(str(file)).rows] == ["b"]
    for name in ("doc_id", "title"):
        pyarrow.parquet.write_table(table.rename_columns(["query", "text", name]), file)
        with pytest.raises(
            BadInput,
            match=rf"rows\.parquet: column '{name}' is of timestamp\[ms\], not of .*; name another",
        ):
            read_candidates(str(file))
    nested = pyarrow.StructArray.from_arrays([far], ["at"])
    pyarrow.parquet.write_table(table.append_column("nested", nested), file)
    assert [row.text for row in read_candidates(str(file)).rows] == ["b"]


def test_whole_queries_that_have_so_many_pairs() -> None:
    candidates = demo_candidates(queries=4, depth=5)
    assert [len(candidates.whole(pairs).rows) for pairs in (1, 5, 9, 10, 19, 100)] == [
        5,
        5,
        5,
        10,
        15,
        20,
    ]
