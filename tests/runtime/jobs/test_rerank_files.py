from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from helpers.rankings import Record, read
from helpers.tiny import make_tiny

from xopt.optimize.export import export
from xopt.runtime import open_scorer, rerank_files
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.data.trec import read_run
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder

Scores = dict[tuple[str, str], float]


@pytest.fixture(scope="module")
def expected(tiny: ModelFolder, records: list[Record], docs: Candidates) -> Scores:
    scores = open_scorer(tiny.path).score(docs.pairs).tolist()
    return {(r["query_id"], r["doc_id"]): score for r, score in zip(records, scores, strict=True)}


def check(rows: list[Record], expected: Scores) -> None:
    """Each pair is there once, with its score and a rank that goes by it."""
    found = {(row["query_id"], row["doc_id"]): row["score"] for row in rows}
    assert len(found) == len(rows)
    assert found == pytest.approx(expected, abs=1e-4)
    for query_id in {row["query_id"] for row in rows}:
        own = sorted(
            (row for row in rows if row["query_id"] == query_id), key=lambda row: row["rank"]
        )
        assert [row["rank"] for row in own] == list(range(1, len(own) + 1))
        assert [row["score"] for row in own] == sorted((row["score"] for row in own), reverse=True)


def best(expected: Scores, top_k: int) -> dict[str, list[float]]:
    """Each query's best scores."""
    queries = dict.fromkeys(query for query, _ in expected)
    return {
        q: sorted((s for (query, _), s in expected.items() if query == q), reverse=True)[:top_k]
        for q in queries
    }


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("out", ["ranked.parquet", "ranked.jsonl", "folder"])
def test_each_row_comes_out_once_with_its_score_and_rank(
    tiny: ModelFolder, records: list[Record], expected: Scores, tmp_path: Path, kind: str, out: str
) -> None:
    file = tmp_path / f"candidates.{kind}"
    flat = [{**record, "text": " ".join(record["text"].split())} for record in records]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), file, row_group_size=7)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        file.write_text(
            "\n".join(["\t".join(flat[0]), *("\t".join(map(str, r.values())) for r in flat)])
        )
    made = rerank_files(tiny.path, [file], tmp_path / out)
    rows = read(tmp_path / out)
    assert made.counts.rows == made.counts.scored == made.counts.written == len(records)
    assert made.variant == "onnx-fp32"
    if kind != "tsv":  # whose texts have no line breaks
        check(rows, expected)
        assert [row["text"] for row in rows] == [record["text"] for record in records]
    numbers = range(len(records))
    assert [row["n"] for row in rows] == (
        [str(n) for n in numbers] if kind in ("csv", "tsv") else list(numbers)
    )


def test_queries_that_lie_apart_and_over_files_are_ranked_whole(
    tiny: ModelFolder,
    records: list[Record],
    expected: Scores,
    tmp_path: Path,
    parquet: Callable[..., str],
) -> None:
    mixed = records[:]
    random.Random(0).shuffle(mixed)
    # the rest of every other query lies elsewhere
    half = [record for record in records if record["n"] % 24 < 18]
    rest = [record for record in records if record["n"] % 24 >= 18]
    for name, files in (
        ("shuffled", [parquet(mixed, "mixed.parquet")]),
        ("cut", [parquet(records[:29], "a.parquet"), parquet(records[29:], "b.parquet")]),
        ("apart", [parquet(half, "half.parquet"), parquet(rest, "rest.parquet")]),
    ):
        rerank_files(tiny.path, files, tmp_path / f"{name}.jsonl")
        check(read(tmp_path / f"{name}.jsonl"), expected)
        rerank_files(tiny.path, files, tmp_path / f"{name}.run", top_k=3)
        run = read_run(tmp_path / f"{name}.run")
        assert {q: list(found.values()) for q, found in run.items()} == {
            q: pytest.approx(scores, abs=1e-4) for q, scores in best(expected, 3).items()
        }


def test_what_cannot_be_scored_is_counted_and_comes_last(
    tiny: ModelFolder, records: list[Record], tmp_path: Path, parquet: Callable[..., str]
) -> None:
    some = [
        {**record, "text": None if record["n"] % 5 == 0 else record["text"]} for record in records
    ]
    some[7]["text"] = "data " * 400_000
    made = rerank_files(tiny.path, [parquet(some)], tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [row["score"] is None for row in rows] == [record["text"] is None for record in some]
    assert made.counts.null == sum(record["text"] is None for record in some)
    assert made.counts.cut >= 1
    for query_id in {row["query_id"] for row in rows}:
        of_query = sorted(
            (row for row in rows if row["query_id"] == query_id), key=lambda row: row["rank"]
        )
        assert [row["rank"] for row in of_query] == list(range(1, len(of_query) + 1))
        assert [row["score"] is None for row in of_query] == sorted(
            row["score"] is None for row in of_query
        )
    rerank_files(tiny.path, [parquet(some)], tmp_path / "out.run")
    run = read_run(tmp_path / "out.run")
    assert sum(map(len, run.values())) == len(some)
    last = max(row["rank"] for row in rows if row["query_id"] == some[0]["query_id"])
    worst = next(
        r["doc_id"] for r in rows if r["query_id"] == some[0]["query_id"] and r["rank"] == last
    )
    assert list(run[some[0]["query_id"]])[-1] == worst


def test_values_of_all_kinds_come_through_json(tiny: ModelFolder, tmp_path: Path) -> None:
    values = [{"a": [1, {"b": None}]}, [1, 2], "text", 3, 1.5, None, True, 1 << 70]
    records = [
        {"query": "data", "text": f"text {i}", "mixed": value, "whole": i}
        for i, value in enumerate(values)
    ]
    records[3]["extra"] = "\ud83d half an emoji"
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    rerank_files(tiny.path, [file], tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [row["mixed"] for row in rows] == values
    assert [row["whole"] for row in rows] == list(range(len(values)))
    assert [row["extra"] for row in rows][3] == "\ufffd half an emoji"


def test_columns_can_be_named_and_left_out(
    tiny: ModelFolder, records: list[Record], tmp_path: Path, parquet: Callable[..., str]
) -> None:
    names = {"query_id": "qid", "query": "q", "doc_id": "pid", "text": "passage", "n": "score"}
    renamed = [{names[name]: value for name, value in record.items()} for record in records]
    file, how = (
        parquet(renamed),
        {"query_id": "qid", "query": "q", "doc_id": "pid", "text": "passage"},
    )
    with pytest.raises(
        BadInput, match="there is a column 'score' already; name another with `score=`"
    ):
        rerank_files(tiny.path, [file], tmp_path / "a.jsonl", **how)
    assert not list(tmp_path.glob("a.jsonl*"))
    rerank_files(tiny.path, [file], tmp_path / "a.jsonl", **how, score="logit", rank="place")
    assert list(read(tmp_path / "a.jsonl")[0]) == [
        "qid",
        "q",
        "pid",
        "passage",
        "score",
        "logit",
        "place",
    ]
    rerank_files(tiny.path, [file], tmp_path / "b.parquet", **how, ids_only=True)
    assert list(read(tmp_path / "b.parquet")[0]) == ["qid", "pid", "score", "rank"]
    for named, message in (
        (
            {},
            "no column 'query', only qid, q, pid, passage, score; name the one to take",
        ),
        ({**how, "doc_id": "did"}, "no column 'did', only"),
        ({**how, "text": "score"}, "column 'score' is of int64, not of strings"),
    ):
        with pytest.raises(BadInput, match=message):
            rerank_files(tiny.path, [file], tmp_path / "c.jsonl", **named)


def test_a_title_stands_above_the_text(
    tiny: ModelFolder, tmp_path: Path, parquet: Callable[..., str]
) -> None:
    rows = [("a title", "a text"), (None, "a text"), ("a title", None), (None, None)]
    file = parquet([{"query": "data", "title": title, "text": text} for title, text in rows])
    rerank_files(tiny.path, [file], tmp_path / "out.jsonl")
    expected = open_scorer(tiny.path).score(
        [("data", "a title\na text"), ("data", "a text"), ("data", "a title")]
    )
    scores = [row["score"] for row in read(tmp_path / "out.jsonl")]
    assert scores[:3] == pytest.approx(expected, abs=1e-4)
    assert scores[3] is None


def bad(records: list[Record], name: str) -> list[Record]:
    """Records with one fault."""
    faulty = [dict(record) for record in records]
    if name == "twice":
        faulty[5]["doc_id"] = faulty[4]["doc_id"]
    elif name == "null id":
        faulty[5]["query_id"] = None
    elif name == "two queries":
        faulty[5]["query"] = "something else"
    elif name == "list":
        faulty = [{**record, "text": [record["text"]]} for record in faulty]
    return faulty


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("twice", r"row 5: document '.*' stands twice among the candidates of"),
        ("null id", r"(row 5|:6): query_id is None, not an id"),
        ("two queries", r"row 5: query id '.*' stands for another query above"),
        ("list", r"(column 'text' is of list|:1: text is \[)"),
    ],
)
def test_bad_inputs_are_refused_before_anything_is_scored(
    tiny: ModelFolder,
    records: list[Record],
    tmp_path: Path,
    parquet: Callable[..., str],
    kind: str,
    name: str,
    message: str,
) -> None:
    faulty = bad(records, name)
    file = parquet(faulty)
    if kind == "jsonl":
        file = str(tmp_path / "in.jsonl")
        Path(file).write_text("".join(json.dumps(record) + "\n" for record in faulty))
    with pytest.raises(BadInput, match=message):
        rerank_files(tiny.path, [file], tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))


def test_two_rows_of_a_query_that_lies_apart_are_found_to_be_one(
    tiny: ModelFolder, records: list[Record], tmp_path: Path, parquet: Callable[..., str]
) -> None:
    with pytest.raises(BadInput, match="stands twice among the candidates of"):
        rerank_files(tiny.path, [parquet([*records, records[0]])], tmp_path / "out.parquet")


def test_collections_and_the_demo_data_are_ranked(tiny: ModelFolder, tmp_path: Path) -> None:
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    texts = {"d1": "data and search", "d2": "an index shard", "d3": "rank the data"}
    (beir / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": d, "text": t}) + "\n" for d, t in texts.items())
    )
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "data"}) + "\n")
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    run = tmp_path / "first.run"
    run.write_text("q1 Q0 d2 1 9 bm25\nq1 Q0 d1 2 8 bm25\n")
    rerank_files(tiny.path, [beir], tmp_path / "out.run", run=str(run))
    scores = open_scorer(tiny.path).score([("data", texts["d2"]), ("data", texts["d1"])])
    assert read_run(tmp_path / "out.run") == {
        "q1": pytest.approx({"d2": scores[0], "d1": scores[1]}, abs=1e-4)
    }
    rerank_files(tiny.path, [beir], tmp_path / "all.jsonl")
    assert {row["doc_id"] for row in read(tmp_path / "all.jsonl")} == set(texts)
    shutil.rmtree(beir / "qrels")
    assert rerank_files(tiny.path, [beir], tmp_path / "unjudged.run", run=str(run)).counts.rows == 2
    with pytest.raises(BadInput, match=r"no qrels/test\.tsv"):
        rerank_files(tiny.path, [beir], tmp_path / "none.run")


def test_a_model_without_one_score_is_refused(
    tmp_path: Path, parquet: Callable[..., str], records: list[Record]
) -> None:
    three = export(
        str(make_tiny(tmp_path / "model", labels=3)), tmp_path / "three", rank_label="none"
    )
    with pytest.raises(
        BadInput, match="the model has 3 labels, and no one score to rank by; export it with"
    ):
        rerank_files(three.path, [parquet(records)], tmp_path / "out.parquet")


def test_the_command_says_what_it_would_do_and_what_it_did(
    tiny: ModelFolder,
    records: list[Record],
    tmp_path: Path,
    parquet: Callable[..., str],
    xopt: Callable[..., Result],
) -> None:
    file, out = parquet(records), tmp_path / "out.parquet"
    seen = xopt("rerank", tiny.path, file, "-o", out, "--dry-run")
    assert seen.exit_code == 0
    assert "96 pairs of 1 input" in seen.stdout
    assert "pairs a second in a sample" in seen.stdout
    assert not list(tmp_path.glob("out*"))
    made = xopt("rerank", tiny.path, file, "-o", out, "--json", "-")
    assert json.loads(made.stdout)["counts"]["rows"] == 96
    again = xopt("rerank", tiny.path, file, "-o", out)
    assert "is done already; nothing is scored" in again.stderr
    assert "96 rows of 96 pairs" in again.stdout
    for wrong, message in (
        (("rerank", tiny.path, tmp_path / "none.parquet", "-o", out), "no such file or folder"),
        (("rerank", tiny.path, file, file, "-o", out), "named twice"),
        (("rerank", tiny.path, file, "-o", tmp_path / "x.csv"), "unknown kind '.csv'; end it in"),
        (
            ("rerank", tiny.path, file, "-o", out, "--variant", "onnx-int4"),
            "no variant 'onnx-int4'",
        ),
        (("rerank", tiny.path, file, "-o", out, "--cascade"), "has no cascade"),
        (("rerank", tiny.path, file, "-o", out, "--first", "n"), "serve a cascade"),
        (("rerank", tiny.path, file, "-o", "s3://bucket/x.run"), "of this machine's file systems"),
    ):
        result = xopt(*wrong)
        assert result.exit_code == 2, wrong
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
