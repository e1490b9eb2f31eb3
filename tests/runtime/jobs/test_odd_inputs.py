"""Inputs that are odd but real, and places that are: what comes out is right, or one line says
why not.
"""

from __future__ import annotations

import decimal
import gzip
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.rankings import Record, read

from xopt.runtime import open_scorer, rerank_files
from xopt.runtime.data.trec import read_run
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.jobs.inputs.scan import _hash

PAIRS = [("data", "a text"), ("data", "search the index"), ("rank", "model of data")]


def jsonl(path: Path, tags: list[Any]) -> Path:
    rows = [{"query": "data", "text": f"text {tag}", "tag": tag} for tag in tags]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, "x"], ["123", "hello"]),
        ([None], [[1]]),
        ([[1]], [None]),
        (["hello"], [[1, 2]]),
        ([None], [3]),
        ([3], [None]),
        ([1, 2], [0.5]),
        ([True], [1]),
        ([], [1]),
    ],
)
def test_shards_of_json_lines_keep_their_values(
    tiny: ModelFolder, tmp_path: Path, first: list[Any], second: list[Any]
) -> None:
    files = [jsonl(tmp_path / "a.jsonl", first), jsonl(tmp_path / "b.jsonl", second)]
    rerank_files(tiny.path, files, tmp_path / "out.jsonl")
    assert [row["tag"] for row in read(tmp_path / "out.jsonl")] == [*first, *second]
    rerank_files(tiny.path, files, tmp_path / "out.parquet")
    assert (
        len(
            {
                str(type(row["tag"]))
                for row in read(tmp_path / "out.parquet")
                if row["tag"] is not None
            }
        )
        <= 1
    )


def typed(kind: pa.DataType) -> pa.Table:
    queries, texts = zip(*PAIRS, strict=True)
    return pa.table(
        {
            "query": pa.array(queries, kind),
            "text": pa.array(texts, kind),
            "query_id": pa.array([7, 7, 8]),
        }
    )


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_type_of_text_is_one(tiny: ModelFolder, tmp_path: Path, kind: pa.DataType) -> None:
    table = typed(kind) if not pa.types.is_dictionary(kind) else typed(pa.string())
    if pa.types.is_dictionary(kind):
        table = table.set_column(0, "query", table["query"].dictionary_encode())
    pq.write_table(table, tmp_path / "in.parquet")
    pq.write_table(
        typed(pa.string()).slice(0, 1).replace_schema_metadata({}), tmp_path / "other.parquet"
    )
    rerank_files(tiny.path, [tmp_path / "in.parquet"], tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [row["score"] for row in rows] == pytest.approx(
        open_scorer(tiny.path).score(PAIRS), abs=1e-4
    )
    assert [row["query_id"] for row in rows] == [7, 7, 8]


def test_values_that_json_has_not_are_written_so_that_it_has(
    tiny: ModelFolder, tmp_path: Path
) -> None:
    table = typed(pa.string())
    columns = {
        "nan": pa.array([float("nan"), float("inf"), 1.5]),
        "map": pa.array([[("k", float("inf"))], [], None], pa.map_(pa.string(), pa.float64())),
        "bytes": pa.array([b"\xff", b"", None]),
        "decimal": pa.array(
            [decimal.Decimal("1.10"), None, decimal.Decimal("2")], pa.decimal128(5, 2)
        ),
        "time": pa.array([datetime(2020, 1, 2), None, None], pa.timestamp("ns")),
        "far": pa.array([1 << 40, None, 0], pa.timestamp("s")),
        "there": pa.array([0, None, 1], pa.timestamp("ms", "Nowhere/Known")),
        "theirs": pa.array(
            [[{"at": 0}], [], None], pa.list_(pa.struct({"at": pa.timestamp("ms", "+02:00")}))
        ),
        "views": pa.array([["a"], [], None], pa.list_(pa.string_view())),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    pq.write_table(table, tmp_path / "in.parquet")
    rerank_files(tiny.path, [tmp_path / "in.parquet"], tmp_path / "out.jsonl")
    rows = read(tmp_path / "out.jsonl")
    assert [row["nan"] for row in rows] == [None, None, 1.5]
    assert rows[0]["map"] == [["k", None]]
    assert [row["bytes"] for row in rows] == ["/w==", "", None]
    assert rows[0]["decimal"] == "1.10"
    assert rows[0]["time"].startswith("2020-01-02 00:00:00")
    assert [row["there"] for row in rows] == [
        "1970-01-01 00:00:00.000Z",
        None,
        "1970-01-01 00:00:00.001Z",
    ]
    assert [row["theirs"] for row in rows] == [[{"at": "1970-01-01 00:00:00.000Z"}], [], None]
    assert [row["views"] for row in rows] == [["a"], [], None]


def test_halves_of_surrogate_pairs_and_depth_in_json(tiny: ModelFolder, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(
        '{"query": "data", "text": "t", "o": {"\\ud83d": ["\\ud83d", NaN]}, "k\\ud83d": 1}\n'
    )
    rerank_files(tiny.path, [file], tmp_path / "out.jsonl")
    (row,) = read(tmp_path / "out.jsonl")
    assert row["o"] == {"\ufffd": ["\ufffd", None]}
    file.write_text('{"query": "data", "text": "t", "o": ' + "[" * 900 + "]" * 900 + "}\n")
    with pytest.raises(
        BadInput, match=r"in\.jsonl:1: 'o' holds lists or objects too deep in each other"
    ):
        rerank_files(tiny.path, [file], tmp_path / "deep.jsonl")


def test_documents_that_stand_twice_far_apart_are_named_by_file_and_row(
    tiny: ModelFolder, tmp_path: Path, parquet: Callable[..., str]
) -> None:
    def row(query: int, doc: int) -> Record:
        return {
            "query_id": f"q{query}",
            "query": f"data {query}",
            "doc_id": f"d{doc}",
            "text": "text",
        }

    files = [
        parquet([row(0, 0), row(1, 0)], "a.parquet"),
        parquet([row(2, 0), row(0, 0)], "b.parquet"),
    ]
    with pytest.raises(
        BadInput, match=r"b\.parquet: row 1: document 'd0' .* of 'q0', first in .*a\.parquet: row 0"
    ):
        rerank_files(tiny.path, files, tmp_path / "out.jsonl")
    rest = [{name: value for name, value in row(0, 1).items() if name != "doc_id"}]
    # no ids of documents here; and the query is scattered
    some = [files[0], parquet(rest, "c.parquet")]
    rerank_files(tiny.path, some, tmp_path / "some.jsonl")
    assert [r["doc_id"] for r in read(tmp_path / "some.jsonl")] == ["d0", "d0", None]
    nameless = [
        {"query": None, "text": "a"},
        {"query": "data", "text": "b"},
        {"query": None, "text": "c"},
    ]
    rerank_files(tiny.path, [files[0], parquet(nameless, "d.parquet")], tmp_path / "nameless.jsonl")
    assert sum(r["score"] is None for r in read(tmp_path / "nameless.jsonl")) == 2
    same = [{**each, "doc_id": "d0"} for each in nameless]
    rerank_files(tiny.path, [parquet(same, "f.parquet")], tmp_path / "same.jsonl")
    rerank_files(tiny.path, [tmp_path / "f.parquet", files[0]], tmp_path / "apart.jsonl")
    assert sum(r["score"] is None for r in read(tmp_path / "same.jsonl")) == 2
    with pytest.raises(BadInput, match=r"g\.parquet: row 0: doc_id is ' ', not an id"):
        rerank_files(
            tiny.path,
            [parquet([{**same[1], "doc_id": " "}], "g.parquet")],
            tmp_path / "blank.jsonl",
        )
    with pytest.raises(BadInput, match="a null query without an id, which a run cannot have"):
        rerank_files(
            tiny.path, [parquet(nameless, "e.parquet")], tmp_path / "out.run", doc_id="text"
        )


def test_queries_are_gathered_in_an_order_that_lasts() -> None:
    assert _hash("a query") == 1757420468122085479
    assert _hash(None) != _hash("")


def test_what_cannot_be_read_says_so_in_one_line(tiny: ModelFolder, tmp_path: Path) -> None:
    def write(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    bad_text = pa.StringArray.from_buffers(
        1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
    )
    pq.write_table(pa.table({"query": ["data"], "text": bad_text}), tmp_path / "bad.parquet")
    pq.write_table(
        pa.table({"query": ["data"], "text": ["t"], "xopt:query": [1]}), tmp_path / "mine.parquet"
    )
    row = b'{"query": "data", "text": "caf\xe9"}\n'
    for file, message in (
        (write("latin.jsonl", row), "files are text in UTF-8"),
        (write("latin.csv", b"query,text\ndata,caf\xe9\n"), "files are text in UTF-8"),
        (write("cut.jsonl.gz", gzip.compress(row * 100)[:-20]), "cannot be read"),
        (
            write("mine.jsonl", b'{"query": "data", "text": "t", "xopt:foo": 7}\n'),
            "names that start with 'xopt:'",
        ),
        (str(tmp_path / "mine.parquet"), "names that start with 'xopt:'"),
        (str(tmp_path / "bad.parquet"), "is damaged behind row 0"),
        (write("empty.jsonl", b""), "no candidates in it"),
    ):
        with pytest.raises(BadInput, match=message):
            rerank_files(tiny.path, [file], tmp_path / "out.jsonl")
    with pytest.raises(BadInput, match="no such file; `run=` takes a TREC run"):
        rerank_files(tiny.path, ["demo"], tmp_path / "out.jsonl", run=str(tmp_path / "none"))
    for out, message in (
        ("", "no name for a file"),
        ("/", "no name for a file"),
        (tmp_path / "plain", "unknown kind ''"),
    ):
        (tmp_path / "plain").touch()
        with pytest.raises(BadInput, match=message):
            rerank_files(tiny.path, [tmp_path / "mine.parquet"], out)
    assert not list(tmp_path.glob("out*"))


def test_outputs_among_the_inputs_and_behind_links_are_told_apart(
    tiny: ModelFolder, tmp_path: Path, parquet: Callable[..., str], records: list[Record]
) -> None:
    (tmp_path / "br[1]").mkdir()
    file = Path(parquet(records, "br[1]/a.parquet"))
    for out in ("ranked.parquet", "folder"):
        first = rerank_files(tiny.path, [file.parent], file.parent / out)
        again = rerank_files(tiny.path, [file.parent], file.parent / out)
        assert (first.parts_now, again.parts_now) == (1, 0)
        for made in (file.parent / out, file.parent / f"{out}.job"):
            made.rename(tmp_path / made.name)
    with pytest.raises(BadInput, match="is what would be written"):
        rerank_files(tiny.path, [file], file, force=True)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert rerank_files(tiny.path, [file], tmp_path / "link").parts_now == 1
    assert rerank_files(tiny.path, [file], tmp_path / "link").parts_now == 0
    assert (
        rerank_files(
            tiny.path, [f"{tmp_path}/link/../br[1]/a.parquet"], tmp_path / "link"
        ).parts_now
        == 0
    )
    assert len(read(tmp_path / "real")) == len(records)


def test_beginning_again_with_bad_inputs_loses_nothing(
    tiny: ModelFolder, tmp_path: Path, parquet: Callable[..., str], records: list[Record]
) -> None:
    file = parquet(records)
    for out in (tmp_path / "folder", tmp_path / "one.run"):
        rerank_files(tiny.path, [file], out)
        with pytest.raises(BadInput, match="no column 'nope'"):
            rerank_files(tiny.path, [file], out, query="nope", force=True)
        assert rerank_files(tiny.path, [file], out).parts_now == 0
        # as after a power cut
        (out.with_name(f"{out.name}.job") / "done" / "000000.json").write_text("")
    assert rerank_files(tiny.path, [file], tmp_path / "folder").parts_now == 1
    assert len(read_run(tmp_path / "one.run")) == len({r["query_id"] for r in records})
