"""BEIR folders and ir_datasets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from xopt.runtime.data.candidates import read_candidates
from xopt.runtime.errors import BadInput


def make_beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": f"d{i}", "title": f"title {word}", "text": f"about {word}s"}
        for i, word in enumerate(("cat", "dog", "bird"))
    ]
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in corpus)
    queries = [
        {"_id": "q1", "text": "a dog"},
        {"_id": "q2", "text": "unjudged"},
        {"_id": "q3", "text": "???"},
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq3\td0\t1\n")
    return folder


def test_a_beir_folder_gives_bm25_candidates_of_its_judged_queries(tmp_path: Path) -> None:
    found = read_candidates(str(make_beir(tmp_path / "beir")))
    assert list(found.groups()) == ["q1", "q3"]
    assert (found.rows[0].doc_id, found.rows[0].text) == ("d1", "title dog\nabout dogs")
    assert found.qrels == {"q1": {"d1": 1}, "q3": {"d0": 1}}


def test_a_run_gives_the_candidates_of_a_beir_folder(tmp_path: Path) -> None:
    folder, run = make_beir(tmp_path / "beir"), tmp_path / "first.run"
    run.write_text("q2 Q0 d2 1 0.5 t\nq1 Q0 d2 2 1.0 t\nq1 Q0 d0 1 3.0 t\nq1 Q0 d1 3 0.5 t\n")
    found = read_candidates(str(folder), run=str(run), depth=2)
    assert [(row.query_id, row.doc_id) for row in found.rows] == [
        ("q2", "d2"),
        ("q1", "d0"),
        ("q1", "d2"),
    ]
    assert found.qrels == {"q1": {"d1": 1}}
    run.write_text("q1 Q0 d9 1 0.5 t\n")
    with pytest.raises(BadInput, match=r"first.run: document 'd9' is not in beir"):
        read_candidates(str(folder), run=str(run))
    with pytest.raises(BadInput, match=r"`run=` names documents of a BEIR folder"):
        read_candidates("demo", run=str(run))


def test_a_broken_beir_folder_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no corpus.jsonl of a BEIR folder"):
        read_candidates(str(tmp_path))
    folder = make_beir(tmp_path / "beir")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\thigh\n")
    with pytest.raises(BadInput, match=r"test.tsv:2: relevance is 'high', not a whole number"):
        read_candidates(str(folder))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td1\t1\n")
    with pytest.raises(BadInput, match=r"beir: no judged queries to rank documents for"):
        read_candidates(str(folder))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(BadInput, match=r"beir: no judged queries to rank documents for"):
        read_candidates(str(folder))


def beir(
    folder: Path, corpus: list[dict[str, object]], queries: list[dict[str, object]], qrels: str
) -> str:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with gzip.open(folder / "qrels" / "test.tsv.gz", "wt") as stream:
        stream.write("query-id\tcorpus-id\tscore\n" + qrels)
    return str(folder)


CORPUS: list[dict[str, object]] = [{"_id": "d1", "text": "dogs"}, {"_id": "d2", "text": "cats"}]
QUERIES: list[dict[str, object]] = [{"_id": "q1", "text": "dogs"}]


def test_ids_with_blanks_keep_their_judgements(tmp_path: Path) -> None:
    corpus: list[dict[str, object]] = [{"_id": "my doc 1", "text": "dogs"}]
    found = read_candidates(
        beir(tmp_path, corpus, [{"_id": "my q", "text": "dogs"}], "my q\tmy doc 1\t1.0\n")
    )
    assert found.qrels == {"my q": {"my doc 1": 1}}
    assert found.rows[0].doc_id == "my doc 1"


def test_a_query_that_lies_in_the_corpus_is_no_candidate_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = [{"_id": "q1", "text": "dogs are good"}, *CORPUS]
    queries: list[dict[str, object]] = [{"_id": "q1", "text": "dogs are good"}]
    found = read_candidates(beir(tmp_path, corpus, queries, "q1\td2\t1\n"), depth=2)
    assert [row.doc_id for row in found.rows] == ["d1", "d2"]
    assert "1 documents with their query's own id are left out" in caplog.text
    judged = read_candidates(beir(tmp_path, corpus, queries, "q1\tq1\t1\n"), depth=1)
    assert [row.doc_id for row in judged.rows] == ["q1"]  # judged: it is meant
    run = tmp_path / "a.run"
    run.write_text("q1 Q0 q1 1 3.0 t\nq1 Q0 d2 2 2.0 t\nq1 Q0 d1 3 1.0 t\n")
    folder = beir(tmp_path, corpus, queries, "q1\td2\t1\n")
    assert [row.doc_id for row in read_candidates(folder, run=str(run), depth=1).rows] == ["d2"]


def test_judgements_of_what_is_not_there_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    qrels = "q1\td1\t1\nq1\td9\t1\nPLAIN-2\td1\t1\n"
    found = read_candidates(beir(tmp_path, CORPUS, QUERIES, qrels))
    assert found.qrels == {"q1": {"d1": 1}}
    assert "1 of 2 judged queries are not among its queries: left out" in caplog.text
    assert "1 judgements of documents that it does not have: left out" in caplog.text


@pytest.mark.parametrize(
    ("corpus", "queries", "message"),
    [
        (
            [*CORPUS, {"_id": "d2", "text": "other"}],
            QUERIES,
            r"corpus.jsonl:3: document 'd2' has another .*jsonl:2",
        ),
        (
            CORPUS,
            [*QUERIES, {"_id": "q1", "text": "other"}],
            r"queries.jsonl:2: query 'q1' has another .*jsonl:1",
        ),
        (
            CORPUS,
            [{"_id": "q1", "text": " "}],
            r"queries.jsonl:1: query 'q1' has no text to rank for",
        ),
        (
            CORPUS,
            [{"_id": "q1", "text": None}],
            r"queries.jsonl:1: query 'q1' has no text to rank for",
        ),
        ([{"_id": "d1", "text": None}], QUERIES, r"corpus.jsonl:1: text is None, not a text"),
        ([{"_id": True, "text": "dogs"}], QUERIES, r"corpus.jsonl:1: _id is True, not an id"),
    ],
)
def test_a_collection_is_read_by_the_same_rules(
    tmp_path: Path, corpus: list[dict[str, object]], queries: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        read_candidates(beir(tmp_path, corpus, queries, "q1\td1\t1\n"))


def test_whole_numbers_are_ids_and_a_title_stands_for_a_text(tmp_path: Path) -> None:
    corpus: list[dict[str, object]] = [
        {"_id": 1, "title": "dogs", "text": None},
        {"_id": 2, "title": 5, "text": "cats"},
    ]
    unused: list[dict[str, object]] = [{"_id": 7, "text": "dogs"}, {"_id": 8, "text": ""}]
    found = read_candidates(beir(tmp_path, corpus, unused, "7\t1\t1\n"))
    assert [(row.query_id, row.doc_id, row.text) for row in found.rows] == [
        ("7", "1", "dogs"),
        ("7", "2", "5\ncats"),
    ]


def test_judged_queries_that_a_run_does_not_rank_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "a.run"
    run.write_text("q2 Q0 d2 1 3.0 t\n")
    # of q3 nothing is asked
    queries = [*QUERIES, {"_id": "q2", "text": "cats"}, {"_id": "q3", "text": 5}]
    found = read_candidates(beir(tmp_path, CORPUS, queries, "q1\td1\t1\n"), run=str(run))
    assert found.qrels == {}
    assert "1 of 1 judged queries are not ranked" in caplog.text


def test_qrels_of_other_ids_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "a.run"
    run.write_text("q1 Q0 d2 1 3.0 t\n")
    read_candidates(beir(tmp_path, CORPUS, QUERIES, "q1\td1\t1\n"), run=str(run))
    assert "no judged document is among the candidates" in caplog.text


def test_an_ir_dataset_gives_bm25_candidates_or_a_runs(tmp_path: Path) -> None:
    ir_datasets = pytest.importorskip(
        "ir_datasets", reason="the package ir_datasets is not installed"
    )
    docs, queries, qrels, run = (
        tmp_path / name for name in ("docs.tsv", "queries.tsv", "qrels", "first.run")
    )
    docs.write_text("d0\tabout cats\nd1\tabout dogs\nd2\tabout birds\n")
    queries.write_text("q1\ta dogs\nq2\tunjudged\n")
    qrels.write_text("q1 0 d1 1\n")
    dataset = ir_datasets.create_dataset(
        docs_tsv=str(docs), queries_tsv=str(queries), qrels_trec=str(qrels)
    )
    if "xopt-test" not in ir_datasets.registry:
        ir_datasets.registry.register("xopt-test", dataset)
    found = read_candidates("irds:xopt-test")
    assert (found.rows[0].doc_id, found.rows[0].text, found.qrels) == (
        "d1",
        "about dogs",
        {"q1": {"d1": 1}},
    )
    run.write_text("q2 Q0 d2 1 0.5 t\n")
    assert [row.text for row in read_candidates("irds:xopt-test", run=str(run)).rows] == [
        "about birds"
    ]
    qrels.write_text("q1 0 d1 1\nq1 0 d1 0\n")
    with pytest.raises(
        BadInput, match=r"irds:xopt-test: qrel 2: document 'd1' of query 'q1' has another grade"
    ):
        read_candidates("irds:xopt-test")
    with pytest.raises(BadInput, match=r"irds:none/at-all: ir_datasets cannot read it"):
        read_candidates("irds:none/at-all")
