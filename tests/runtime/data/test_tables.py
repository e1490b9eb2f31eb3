"""Tables in every format give the same candidates, or one clear line."""

from __future__ import annotations

import csv
import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from xopt.runtime.data.candidates import Candidates, Row, read_candidates
from xopt.runtime.errors import BadInput

COLUMNS = ("query_id", "query", "doc_id", "text", "relevance")
Table = list[dict[str, Any]]


def write(path: Path, rows: Table) -> Path:
    """Write a table as people's programs do: json.dumps, csv.writer, cut and paste, pyarrow."""
    columns = list(rows[0])
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if kind in {".jsonl", ".ndjson"}:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        elif kind == ".csv":
            csv.writer(file).writerows([columns, *(row.values() for row in rows)])
        else:
            lines = [
                columns,
                *(["" if v is None else str(v) for v in row.values()] for row in rows),
            ]
            file.writelines("\t".join(line) + "\n" for line in lines)
    return path


FORMATS = (
    ".jsonl",
    ".jsonl.gz",
    ".ndjson",
    ".JSONL",
    ".csv",
    ".csv.gz",
    ".tsv",
    ".tsv.gz",
    ".parquet",
)
# Unicode without lone surrogates, which are read as U+FFFD; a TSV field holds neither tabs nor
# line ends.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), max_size=30)


if sys.version_info < (3, 11):  # whose csv module takes no NUL
    LINE = LINE.filter(lambda text: "\0" not in text)
    TEXT = TEXT.filter(lambda text: "\0" not in text)


@st.composite
def tables(draw: st.DrawFn, text: st.SearchStrategy[str]) -> Table:
    full = text.filter(str.strip)
    documents = draw(st.dictionaries(full, text, min_size=1, max_size=5))
    queries = draw(st.dictionaries(full, full, min_size=1, max_size=3))
    grade = st.one_of(st.none(), st.integers(-2, 3))
    return [
        {"query_id": q, "query": query, "doc_id": d, "text": body, "relevance": draw(grade)}
        for q, query in queries.items()
        for d, body in documents.items()
    ]


def expected(rows: Table) -> tuple[tuple[Row, ...], dict[str, dict[str, int]]]:
    found: dict[str, list[Row]] = {}
    qrels: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row["query_id"], []).append(Row(*(row[name] for name in COLUMNS[:4])))
        if row["relevance"] is not None:
            qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    return tuple(row for rows in found.values() for row in rows), qrels


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_table_is_read_back_as_it_was_written(suffix: str, data: st.DataObject) -> None:
    rows = data.draw(tables(LINE if suffix.startswith(".tsv") else TEXT))
    with tempfile.TemporaryDirectory() as folder:
        found = read_candidates(str(write(Path(folder) / f"rows{suffix}", rows)))
    assert (found.rows, found.qrels) == expected(rows)


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), content=st.binary(max_size=200))
def test_any_bytes_are_candidates_or_one_clear_line(
    suffix: str, data: st.DataObject, content: bytes
) -> None:
    whole = b""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        if data.draw(st.booleans()):  # a file that was sound once
            whole = write(path, data.draw(tables(LINE))).read_bytes()
        at = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:at] + content + whole[data.draw(st.integers(at, len(whole))) :])
        try:
            found, said = read_candidates(str(path)), ""
        except BadInput as error:
            found, said = None, str(error)
    if found is None:
        assert path.name in said
        assert "\n" not in said
        return
    queries = {row.query_id: row.query for row in found.rows}
    documents = {row.doc_id: row.text for row in found.rows}
    assert len({(row.query_id, row.doc_id) for row in found.rows}) == len(found.rows) > 0
    for row in found.rows:
        assert row.query_id.strip()
        assert row.query.strip()
        assert (row.query, row.text) == (queries[row.query_id], documents[row.doc_id])


def table(tmp_path: Path, text: str, name: str = "t.tsv") -> Candidates:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_candidates(str(tmp_path / name))


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_collection_and_a_run_are_read_back_as_they_were_written(data: st.DataObject) -> None:
    rows = data.draw(tables(LINE))
    own = {(row["query_id"], row["doc_id"]) for row in rows if row["query_id"] == row["doc_id"]}
    kept = [
        row
        for row in rows
        if (row["query_id"], row["doc_id"]) not in own or row["relevance"] is not None
    ]
    assume(kept)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "qrels").mkdir()
        queries = {row["query_id"]: row["query"] for row in rows}
        documents = {row["doc_id"]: row["text"] for row in rows}
        write(folder / "corpus.jsonl", [{"_id": d, "text": text} for d, text in documents.items()])
        write(folder / "queries.jsonl", [{"_id": q, "text": text} for q, text in queries.items()])
        judged = [
            (row["query_id"], row["doc_id"], row["relevance"])
            for row in rows
            if row["relevance"] is not None
        ]
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, line)) for line in judged)]
        (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        run = [
            f"{row['query_id']}\tQ0\t{row['doc_id']}\t{i}\t{-i}\ttag" for i, row in enumerate(rows)
        ]
        (folder / "a.run").write_text("\n".join(run) + "\n", encoding="utf-8")
        found = read_candidates(str(folder), run=str(folder / "a.run"))
    assert (found.rows, found.qrels) == expected(kept)


def test_a_tsv_has_no_quotes(tmp_path: Path) -> None:
    texts = [
        '"Unclosed quote here',
        "second doc",
        'third "quoted" doc',
        '"Hello" said she',
        "line\u2028break\x85\x0b",
    ]
    lines = [f"1\tquery\td{i}\t{text}" for i, text in enumerate(texts)]
    found = table(tmp_path, "\r\n".join(["query_id\tquery\tdoc_id\ttext", *lines]) + "\r\n")
    assert [row.text for row in found.rows] == texts


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['1,q,x,"Unclosed', "1,q,y,second", '1,q,z,third "quoted" doc'], r"t.csv:2: not CSV"),
        (['1,q,x,"Hello" said she'], r"t.csv:2: not CSV"),
        (
            ['1,q,x,"Unclosed', "1,q,y,second", '1,q,z,third"'],
            r"t.csv:2: a quoted field reaches to line 4",
        ),
        (
            ['7,q,d1,"Unclosed', "12,r,d23,second, or, third".replace(", ", ";"), '3,s,d4,third"'],
            r"t.csv:2: a quoted",
        ),
        (['1,q,x,"Unclosed', "1,q,y,second"], r"t.csv:2: not CSV"),
        (['1,"Unclosed,d1,first', '1,q",d2,second'], r"t.csv:2: a quoted field reaches to line 3"),
        (["1,q,x,first", "1,q,y"], r"t.csv:3: 3 fields, starting '1', below a header of 4"),
        (["1,q,x,first", "1,q,y,one, two"], r"t.csv:3: 5 fields"),
    ],
)
def test_a_csv_row_that_swallows_others_or_does_not_fit_is_refused(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        table(tmp_path, "\n".join(["query_id,query,doc_id,text", *lines]) + "\n", "t.csv")


def test_a_csv_field_may_have_lines_commas_and_quotes(tmp_path: Path) -> None:
    body = 'He said "no",\nand, then, he, left\n\n"quoted, at, the, start"'
    quoted = body.replace('"', '""')
    found = table(
        tmp_path, f'query_id,query,doc_id,text\n1,q,x,"{quoted}"\n\n1,q,y,plain\n', "t.csv"
    )
    assert [row.text for row in found.rows] == [body, "plain"]
    members = table(tmp_path, 'query,text\nq,"Members:\nx,1\ny,2"\n', "members.csv")
    assert members.rows[0].text == "Members:\nx,1\ny,2"


def test_a_tsv_row_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"t.tsv:3: 5 fields, starting '1', below a header of 4"):
        table(tmp_path, "query_id\tquery\tdoc_id\ttext\n1\tq\tx\ty\n1\tq\tz\ta\tb\n")
    with pytest.raises(BadInput, match=r"t.tsv:1: the header names column 'text' twice"):
        table(tmp_path, "query\ttext\ttext\nq\ta\tb\n")
    with pytest.raises(BadInput, match=r"t.tsv: no column 'query', only 1, 2; name the one"):
        table(tmp_path, "1\t2\nq\ta\n")


def jsonl(tmp_path: Path, *rows: dict[str, Any]) -> Candidates:
    return table(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "t.jsonl")


GOOD = {"query_id": "1", "query": "a", "doc_id": "x", "text": "first"}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"query": "b", "doc_id": "y"},
            r"t.jsonl:2: query '1' has another text than in .*t.jsonl:1",
        ),
        (
            {"query_id": "2", "text": "other"},
            r"t.jsonl:2: document 'x' has another text than in .*t.jsonl:1",
        ),
        (
            {},
            r"t.jsonl:2: document 'x' stands twice among .* of '1', first in .*t.jsonl:1",
        ),
        ({"doc_id": True}, r"t.jsonl:2: doc_id is True, not an id"),
        ({"doc_id": 1.0}, r"t.jsonl:2: doc_id is 1.0, not an id"),
        ({"doc_id": "y", "text": float("nan")}, r"t.jsonl:2: text is nan, not a text"),
        ({"doc_id": "y", "title": ["a"]}, r"t.jsonl:2: title is \['a'\], not a text"),
        (
            {"doc_id": "y", "relevance": 0.5},
            r"t.jsonl:2: relevance is 0.5, not a whole number; grades are 0, 1, 2",
        ),
        (
            {"doc_id": "y", "relevance": 10**400},
            r"t.jsonl:2: relevance is 1000.*, not a whole number",
        ),
        ({"doc_id": "y", "relevance": "1_0"}, r"t.jsonl:2: relevance is '1_0', not a whole number"),
    ],
)
def test_two_texts_for_an_id_and_odd_values_are_refused(
    tmp_path: Path, second: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        jsonl(tmp_path, GOOD, {**GOOD, **second})


@pytest.mark.parametrize(
    ("given", "grade"),
    [
        (1.0, 1),
        ("1.0", 1),
        ("2", 2),
        (-1, -1),
        (True, 1),
        (float("nan"), None),
        (None, None),
        ("", None),
        ("NaN", None),
    ],
)
def test_whole_floats_are_grades_and_nan_is_not_judged(
    tmp_path: Path, given: Any, grade: int | None
) -> None:
    found = jsonl(tmp_path, {**GOOD, "relevance": given})
    assert found.qrels == ({} if grade is None else {"1": {"x": grade}})


def test_a_parquet_column_of_floats_with_nulls_holds_grades(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "doc_id": str(i), "text": str(i), "relevance": g}
        for i, g in enumerate([1.0, None, float("nan")])
    ]
    found = read_candidates(str(write(tmp_path / "t.parquet", rows)))
    assert found.qrels == {"1": {"0": 1}}


def test_what_stands_twice_in_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"t.jsonl:1: not JSON \(key 'text' stands twice\)"):
        table(tmp_path, '{"query": "a", "text": "b", "text": "c"}\n', "t.jsonl")
    columns = [pyarrow.array(["a"])] * 3
    pyarrow.parquet.write_table(
        pyarrow.table(columns, names=["query", "text", "text"]), tmp_path / "t.parquet"
    )
    with pytest.raises(BadInput, match=r"t.parquet: has column 'text' twice"):
        read_candidates(str(tmp_path / "t.parquet"))


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").mkdir()
    for i in range(2):
        write(
            tmp_path / "t.parquet" / f"part-{i}.parquet",
            [{**GOOD, "doc_id": f"d{i}", "text": f"text {i}"}],
        )
    assert [row.doc_id for row in read_candidates(str(tmp_path / "t.parquet")).rows] == ["d0", "d1"]


def test_a_title_stands_above_the_text_or_for_it(tmp_path: Path) -> None:
    titles = [("A", "text"), ("B", None), ("", "text b"), (None, ""), (5, "text"), ("C", "")]
    rows = [
        {**GOOD, "doc_id": i, "title": title, "text": text}
        for i, (title, text) in enumerate(titles)
    ]
    found = jsonl(tmp_path, *rows)
    assert [(row.doc_id, row.text) for row in found.rows] == [
        ("0", "A\ntext"),
        ("1", "B"),
        ("2", "text b"),
        ("3", ""),
        ("4", "5\ntext"),
        ("5", "C"),
    ]


def test_half_a_surrogate_pair_is_read_as_a_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        '{"query": "a\\ud83d b", "text": "\\ude00 c \\ud83d\\ude00"}\n'
    )
    row = read_candidates(str(tmp_path / "t.jsonl")).rows[0]
    assert (row.query, row.text) == ("a\ufffd b", "\ufffd c \U0001f600")


def test_gzip_is_known_by_content(tmp_path: Path) -> None:
    line = (json.dumps(GOOD) + "\n").encode()
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(line))
    (tmp_path / "b.jsonl.gz").write_bytes(line)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(line)[:-12])
    assert (
        read_candidates(str(tmp_path / "a.jsonl")).rows
        == read_candidates(str(tmp_path / "b.jsonl.gz")).rows
    )
    with pytest.raises(BadInput, match=r"c.jsonl.gz: cannot be read"):
        read_candidates(str(tmp_path / "c.jsonl.gz"))
    with pytest.raises(BadInput, match=r"d.json.gz: unknown kind"):
        (tmp_path / "d.json.gz").touch()
        read_candidates(str(tmp_path / "d.json.gz"))


# datasets leaves a CSV file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_hugging_face_dataset_is_read_by_the_same_rules(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    (tmp_path / "pairs").mkdir()
    rows = [
        {**GOOD, "doc_id": str(i), "text": f"text {i}", "relevance": g}
        for i, g in enumerate([1.0, 0.0, None])
    ]
    write(tmp_path / "pairs" / f"test{suffix}", rows)
    found = read_candidates(f"hf:{tmp_path / 'pairs'}")
    assert found.qrels == {"1": {"0": 1, "1": 0}}
