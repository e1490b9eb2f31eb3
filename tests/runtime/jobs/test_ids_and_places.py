"""Ids of several kinds, and files that stand beside or among a job's: nobody's data is lost or
renamed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from helpers.rankings import read

from xopt.runtime import rerank_files
from xopt.runtime.data.candidates import read_candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text(
        "".join(json.dumps({"query": "data", "text": "index", **row}) + "\n" for row in rows)
    )
    return path


def table(path: Path, **columns: list[Any]) -> Path:
    count = len(next(iter(columns.values())))
    pq.write_table(
        pa.table({"query": ["data"] * count, "text": ["index"] * count, **columns}), path
    )
    return path


@pytest.mark.parametrize("options", [{}, {"ids_only": True}])
@pytest.mark.parametrize("out", ["out.parquet", "out.jsonl"])
def test_an_id_is_its_digits_whatever_the_others_are(
    tiny: ModelFolder, tmp_path: Path, out: str, options: dict[str, Any]
) -> None:
    mixed = lines(
        tmp_path / "a.jsonl", {"query_id": 1, "doc_id": 7}, {"query_id": 1, "doc_id": "7b"}
    )
    more = tmp_path / "b.csv"
    more.write_text("query_id,doc_id,query,text\n1,007,data,index\n2,8,rank,index\n")
    whole = table(tmp_path / "c.parquet", query_id=[1, 3], doc_id=[9, 1 << 60])
    rerank_files(tiny.path, [mixed, more, whole], tmp_path / out, **options)
    found = {(row["query_id"], row["doc_id"]) for row in read(tmp_path / out)}
    assert found == {
        ("1", "7"),
        ("1", "7b"),
        ("1", "007"),
        ("2", "8"),
        ("1", "9"),
        ("3", str(1 << 60)),
    }


def test_ids_of_one_kind_stay_what_they_are(tiny: ModelFolder, tmp_path: Path) -> None:
    whole = [
        lines(tmp_path / "a.jsonl", {"query_id": 1, "doc_id": 7}),
        table(tmp_path / "b.parquet", query_id=[1], doc_id=[8]),
    ]
    rerank_files(tiny.path, whole, tmp_path / "out.parquet")
    narrow = pa.table(
        {"query": ["data"], "text": ["index"], "query_id": pa.array([1], pa.uint8()), "doc_id": [9]}
    )
    pq.write_table(narrow, tmp_path / "c.parquet")
    rerank_files(tiny.path, [*whole, tmp_path / "c.parquet"], tmp_path / "more.parquet")
    assert {(row["query_id"], row["doc_id"]) for row in read(tmp_path / "more.parquet")} == {
        (1, 7),
        (1, 8),
        (1, 9),
    }


def test_a_document_stands_twice_though_once_as_a_number(tiny: ModelFolder, tmp_path: Path) -> None:
    files = [table(tmp_path / "a.parquet", doc_id=[1]), table(tmp_path / "b.parquet", doc_id=["1"])]
    with pytest.raises(BadInput, match="document '1' stands twice"):
        rerank_files(tiny.path, files, tmp_path / "out.run")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_blank_query_is_none(tiny: ModelFolder, tmp_path: Path, kind: str, named: bool) -> None:
    rows = [
        {"query_id": "a", "query": " ", "text": "index"},
        {"query_id": "b", "query": "data", "text": "index"},
    ]
    rows = rows if named else [{name: row[name] for name in ("query", "text")} for row in rows]
    file = tmp_path / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "jsonl":
        lines(file, *rows)
    else:
        file.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    made = rerank_files(tiny.path, [file], tmp_path / "out.jsonl")
    assert (made.counts.scored, made.counts.null) == (1, 1)
    assert [row["score"] is None for row in read(tmp_path / "out.jsonl")] == [True, False]


def test_what_stands_in_the_place_of_a_job_is_kept(tiny: ModelFolder, tmp_path: Path) -> None:
    file = lines(tmp_path / "in.jsonl", {})
    (tmp_path / "mine.job" / "parts").mkdir(parents=True)
    (tmp_path / "mine.job" / "thesis.tex").write_text("a proof")
    (tmp_path / "home" / ".model.new-else-1").mkdir(parents=True)
    (tmp_path / "home" / "part-notes.new-1").touch()
    (tmp_path / "file.parquet").touch()
    before = sorted(tmp_path.rglob("*"))
    for out, force, message in (
        ("mine", False, "a folder that no job made, with thesis.tex"),
        ("mine", True, "a folder that no job made, with thesis.tex"),
        ("home", True, "files that no job made"),
        ("file.parquet/", True, "is a file, and not a folder"),
    ):
        with pytest.raises(BadInput, match=message):
            rerank_files(tiny.path, [file], f"{tmp_path}/{out}", force=force)
        assert sorted(tmp_path.rglob("*")) == before
    rerank_files(tiny.path, [file], tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl.job" / "notes.md").write_text("to be kept")
    rerank_files(tiny.path, [file], tmp_path / "out.jsonl", force=True)
    assert (tmp_path / "out.jsonl.job" / "notes.md").read_text() == "to be kept"


def test_a_file_that_came_while_a_job_was_stopped_is_not_replaced(
    tiny: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = lines(tmp_path / "in.jsonl", {}), tmp_path / "out.jsonl"
    for replaced in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(
                "xopt.runtime.jobs.rerank_files._do",
                lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
            )
            with pytest.raises(KeyboardInterrupt):
                rerank_files(tiny.path, [file], out, force=replaced)
        out.write_text("mine")
        if not replaced:
            with pytest.raises(BadInput, match=r"was not made by the job in .*; move it away"):
                rerank_files(tiny.path, [file], out)
            assert out.read_text() == "mine"
    assert rerank_files(tiny.path, [file], out).parts_now == 1  # begun with --force, over a file


def test_folders_and_patterns_leave_nothing_out_without_a_word(
    tiny: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    lines(folder / "a.jsonl", {})
    (folder / "README.md").touch()
    (folder / ".hidden.zst").touch()
    for name in (folder, f"{folder}/*"):
        caplog.clear()
        assert rerank_files(tiny.path, [name], tmp_path / "out.jsonl", force=True).counts.rows == 1
        assert "1 files of other kinds are left out" in caplog.text
        assert "README.md" in caplog.text
        for packed in ("b.jsonl.zst", "c.parquet.gz"):
            (folder / packed).touch()
            with pytest.raises(BadInput, match=rf"{packed}: cannot be read; unpack it"):
                rerank_files(tiny.path, [name], tmp_path / "other.jsonl")
            (folder / packed).unlink()
        (folder / "d.jsonl").symlink_to(tmp_path / "gone.jsonl")
        with pytest.raises(BadInput, match=r"d\.jsonl: a link to what is not there"):
            rerank_files(tiny.path, [name], tmp_path / "other.jsonl")
        (folder / "d.jsonl").unlink()


def test_a_ranking_within_a_collection_is_not_read_for_it(
    tiny: ModelFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    lines(folder / "corpus.jsonl", *({"_id": f"d{n}", "text": f"data {n}"} for n in range(3)))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "data"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td1\t1\n")
    before = read_candidates(str(folder))
    assert rerank_files(tiny.path, [folder], folder / "ranked.parquet").counts.rows == 3
    assert read_candidates(str(folder)) == before
    assert rerank_files(tiny.path, [folder], tmp_path / "out.run").counts.rows == 3


def test_a_folder_of_tables_is_read_as_a_job_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", ".b", "_c"):
        table(tmp_path / f"{name}.parquet", doc_id=[name])
    assert [row.doc_id for row in read_candidates(str(tmp_path)).rows] == ["a"]
    assert not caplog.records
    lines(tmp_path / "d.jsonl", {"doc_id": "d"})
    (tmp_path / "notes.txt").touch()
    assert [row.doc_id for row in read_candidates(str(tmp_path)).rows] == ["a", "d"]
    assert "1 files of other kinds are left out: notes.txt" in caplog.text


def test_a_data_set_goes_in_as_a_file_does(tiny: ModelFolder, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    at = datetime(2020, 1, 2)
    rows = [
        {"q": "data", "doc_id": n, "text": text, "bm25": n / 2, "at": at, "raw": b"x", "tags": [n]}
        for n, text in enumerate(["index", None])
    ]
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    out, options = tmp_path / "out.jsonl", {"query": "q", "split": "train"}
    rerank_files(tiny.path, [f"hf:{folder}"], out, **options)
    found = read(out)
    said = {"at": "2020-01-02 00:00:00.000000", "raw": "eA=="}
    assert [{name: row[name] for name in rows[0]} for row in found] == [
        {**row, **said} for row in rows
    ]
    rerank_files(tiny.path, [f"hf:{folder}"], tmp_path / "out.parquet", **options)
    assert [{name: row[name] for name in rows[0]} for row in read(tmp_path / "out.parquet")] == rows
    (tmp_path / "a.run").write_text("q Q0 0 1 1 any\n")
    with pytest.raises(
        BadInput, match="`run=` names documents of a BEIR folder or an irds: dataset"
    ):
        rerank_files(
            tiny.path,
            [f"hf:{folder}"],
            tmp_path / "run.jsonl",
            run=str(tmp_path / "a.run"),
            **options,
        )
    assert [row["score"] is None for row in found] == [False, True]
    with pytest.raises(BadInput, match="`depth=` is for BEIR folders and irds: datasets"):
        rerank_files(tiny.path, [f"hf:{folder}"], out, depth=1, **options)
    datasets.Dataset.from_list(rows[:1]).to_parquet(folder / "train.parquet")
    with pytest.raises(BadInput, match=r"hf:.*: changed since .* was begun"):
        rerank_files(tiny.path, [f"hf:{folder}"], out, **options)


def test_json_replaces_nothing_but_json(
    xopt: Callable[..., Result], tiny: ModelFolder, tmp_path: Path
) -> None:
    file, out = lines(tmp_path / "in.jsonl", {}), tmp_path / "out.jsonl"
    job = ("rerank", tiny.path, file, "-o", out)
    for place, message in ((out, "named for something else"), (file, "named for something else")):
        refused = xopt(*job, "--json", place)
        assert (refused.exit_code, message in refused.stderr, out.exists()) == (2, True, False)
    (tmp_path / "data.jsonl").write_bytes(file.read_bytes())
    (tmp_path / "blank.txt").write_text("\nnotes")
    for place in (tmp_path / "data.jsonl", tmp_path / "blank.txt", tiny.path / "xopt.json"):
        refused = xopt(*job, "--json", place)
        assert (refused.exit_code, "no result of a command" in refused.stderr) == (2, True)
    for _ in range(2):
        assert xopt(*job, "--json", tmp_path / "made.json").exit_code == 0
    assert json.loads((tmp_path / "made.json").read_text())["parts"] == 1
