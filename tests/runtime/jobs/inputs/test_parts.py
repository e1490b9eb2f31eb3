from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.runtime.data.columns import Columns
from xopt.runtime.data.sources import find_sources
from xopt.runtime.errors import BadInput
from xopt.runtime.jobs.inputs import gather
from xopt.runtime.jobs.inputs.files import Reader, pairs_at
from xopt.runtime.jobs.inputs.plan import Planned, Wanted, plan


def planned_of(names: list[str], folder: Path, **wanted: Any) -> Planned:
    return plan(find_sources(names), lambda _: (), Wanted(**wanted), folder)


QUERIES = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=30)


@given(QUERIES, st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.booleans())
def test_every_row_is_in_one_part_with_all_of_its_query(
    runs: list[tuple[int, int]], files: int, part_rows: int, group_rows: int, nameless: bool
) -> None:
    queries = [query for query, length in runs for _ in range(length)]
    table = pa.table(
        {
            "query": [None if nameless and q == 0 else f"query {q}" for q in queries],
            "text": [f"text {i}" for i in range(len(queries))],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for number in range(files):
            start, stop = (len(queries) * at // files for at in (number, number + 1))
            names.append(f"{folder}/{number}.parquet")
            pq.write_table(table.slice(start, stop - start), names[-1], row_group_size=group_rows)
        with patch.object(gather, "BUCKET_ROWS", part_rows):
            planned = planned_of(names, Path(folder), part_rows=part_rows)
        readers = [Reader(file, planned.schema.names) for file in planned.files]
        seen: list[str | None] = []
        where: dict[str | None, int] = {}
        for number, slices in enumerate(planned.parts):
            order: list[str | None] = []
            for file, start, stop in slices:
                found = readers[file].rows(start, stop)
                for row in pairs_at(found, planned.files[file], range(start, stop)).to_pylist():
                    seen.append(row["text"])
                    assert where.setdefault(row["query_id"], number) == number
                    if row["query_id"] not in order[-1:]:
                        order.append(row["query_id"])
            assert len(set(order)) == len(order)  # a query's rows follow each other
            assert sum(b - a for _, a, b in slices) <= part_rows or len(order) == 1
        assert sorted(map(str, seen)) == sorted(f"text {i}" for i in range(len(queries)))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8), st.integers(1, 45))
def test_a_reader_gives_any_rows_in_any_order(
    slices: list[tuple[int, int]], group_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/a.parquet"
        pq.write_table(
            pa.table({"query": ["q"] * 40, "text": [str(i) for i in range(40)]}),
            file,
            row_group_size=group_rows,
        )
        planned = planned_of([file], Path(folder))
        reader = Reader(planned.files[0], ["text"])
        for a, b in slices:
            start, stop = min(a, b), max(a, b)
            assert reader.rows(start, stop).column("text").to_pylist() == [
                str(i) for i in range(start, stop)
            ]


def test_inputs_are_found_by_folder_and_pattern_and_on_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fsspec

    table = pa.table({"query": ["q"], "text": ["t"]})
    (tmp_path / "deep").mkdir()
    for name in (
        "b.parquet",
        "a.parquet",
        "deep/c.parquet",
        "_left.parquet",
        ".hidden.parquet",
        "notes.txt",
    ):
        pq.write_table(table, tmp_path / name)
    names = [Path(source.name).name for source in find_sources([str(tmp_path)])]
    assert names == ["a.parquet", "b.parquet", "c.parquet"]
    assert [Path(s.name).name for s in find_sources([f"{tmp_path}/?.parquet"])] == [
        "a.parquet",
        "b.parquet",
    ]
    with fsspec.filesystem("memory").open("/store/a.parquet", "wb") as stream:
        pq.write_table(table, stream)
    (remote,) = find_sources(["memory://store/a.parquet"])
    planned = plan([remote], lambda _: (), Wanted(), tmp_path)
    assert planned.rows == 1
    assert Reader(planned.files[0], ["text"]).rows(0, 1).to_pylist() == [
        {"query": "q", "text": "t"}
    ]
    by_name = {
        "**/*.parquet": ["a.parquet", "b.parquet", "deep/c.parquet"],
        "**": ["a.parquet", "b.parquet", "deep/c.parquet"],
        "d*": ["deep/c.parquet"],
        "*": ["a.parquet", "b.parquet", "deep/c.parquet"],
        "*/[a-c].parquet": ["deep/c.parquet"],
        "**/d*": ["deep/c.parquet"],
        "**/*": ["a.parquet", "b.parquet", "deep/c.parquet"],
        "deep/**": ["deep/c.parquet"],
    }
    (tmp_path / "images").mkdir()  # without a table
    with fsspec.filesystem("memory").open("/store/deep/c.parquet", "wb") as stream:
        pq.write_table(table, stream)
    for pattern, named in by_name.items():
        assert [s.name for s in find_sources([f"{tmp_path}/{pattern}"])] == [
            f"{tmp_path}/{name}" for name in named
        ]
        stored = [f"memory://store/{name}" for name in named if name != "b.parquet"]
        assert [s.name for s in find_sources([f"memory://store/{pattern}"])] == stored
    (tmp_path / "linked").symlink_to(tmp_path / "deep")
    for pattern in ("linked/*", "l*", "l*/*.parquet", "l*/**"):
        assert [s.name for s in find_sources([f"{tmp_path}/{pattern}"])] == [
            f"{tmp_path}/linked/c.parquet"
        ]
    (tmp_path / "linked").unlink()
    caplog.clear()
    assert [s.name for s in find_sources([f"{tmp_path}/[dn]*"])] == [f"{tmp_path}/deep/c.parquet"]
    assert "1 files of other kinds are left out" in caplog.text
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "c.parquet").symlink_to("c.parquet")
    assert len(find_sources([f"{tmp_path}/*.parquet"])) == 2  # the lost link is not among them
    (tmp_path / "br[1]").mkdir()
    pq.write_table(table, tmp_path / "br[1]" / "e.parquet")
    monkeypatch.chdir(tmp_path / "br[1]")
    assert [s.name for s in find_sources(["*.parquet"])] == ["e.parquet"]
    (other := tmp_path / "br[1]" / os.fsdecode(b"caf\xe9.csv")).touch()
    with pytest.raises(BadInput, match="a name that is not UTF-8"):
        find_sources([str(tmp_path / "br[1]")])
    other.unlink()
    for wrong, message in (
        ([f"{tmp_path}/*/*.parquet"], "logs/c.parquet: a link to what is not there"),
        ([f"{tmp_path}/lo*"], "c.parquet: a link to what is not there"),
        ([str(tmp_path / "none")], "no such file or folder"),
        ([f"{tmp_path}/x*.parquet"], "no .jsonl, .* file has such a name"),
        ([str(tmp_path / "notes.txt")], "unknown kind '.txt'"),
        ([str(tmp_path / "a.parquet"), f"{tmp_path}/deep/../a.parquet"], "named twice"),
        (["nowhere://a.parquet"], "cannot be reached"),
        (["memory://store/**.parquet"], "not a pattern"),
        ([], "no inputs"),
    ):
        with pytest.raises(BadInput, match=message):
            find_sources(wrong)


def test_tables_of_one_name_on_a_store_are_two(tmp_path: Path) -> None:
    import fsspec

    store, names = (
        fsspec.filesystem("memory"),
        [f"memory://tables/day={day}/part-0.jsonl" for day in (1, 2)],
    )
    for day, name in enumerate(names):
        with store.open(name, "wb") as stream:
            stream.write(b'{"query": "q", "text": "%d"}\n' % day)
    planned = planned_of(names, tmp_path)
    texts = [Reader(file, ["text"]).rows(0, 1).column("text").to_pylist() for file in planned.files]
    assert texts == [["0"], ["1"]]


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_first_score_that_is_missing_is_said_before_anything_is_scored(
    tmp_path: Path, missing: float | None
) -> None:
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"query": ["q"] * 2, "text": ["a", "b"], "bm25": [1.0, missing]}), file)
    with pytest.raises(BadInput, match=r"in\.parquet: row 1: bm25 is (None|nan), not a score"):
        planned_of([str(file)], tmp_path, columns=Columns(first="bm25"))


def test_a_collection_below_a_folder_of_tables_makes_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "nfcorpus").mkdir()
    (tmp_path / "nfcorpus" / "corpus.jsonl").write_text('{"_id": "d", "text": "t"}\n')
    pq.write_table(pa.table({"query": ["q"], "text": ["t"]}), tmp_path / "a.parquet")
    assert [source.kind for source in find_sources([str(tmp_path)])] == ["parquet", "text"]
    assert [source.kind for source in find_sources([str(tmp_path / "nfcorpus")])] == ["collection"]
