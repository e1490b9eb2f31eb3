"""One meaning has one type, whoever wrote it; and memory is bounded by bytes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.rankings import read

from xopt.runtime import rerank_files
from xopt.runtime.data.parquet import BATCH_BYTES, batches_of, one_schema, open_parquet
from xopt.runtime.data.places import located
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder

FAR = [datetime(9999, 12, 31), datetime(1000, 1, 1)]


def table(**columns: Any) -> pa.Table:
    rows = len(next(iter(columns.values())))
    return pa.table({"query": ["data"] * rows, "text": ["index"] * rows, **columns})


def test_dates_of_spark_are_what_they_were(tiny: ModelFolder, tmp_path: Path) -> None:
    times = pa.array(FAR, pa.timestamp("us"))
    lists = pa.array([[time] for time in FAR], pa.list_(pa.timestamp("us")))
    for name, old in (("spark", True), ("arrow", False)):
        file = tmp_path / f"{name}.parquet"
        pq.write_table(table(at=times, all=lists), file, use_deprecated_int96_timestamps=old)
    files = [tmp_path / "spark.parquet", tmp_path / "arrow.parquet"]
    rerank_files(tiny.path, files, tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["at"] for row in rows] == FAR * 2
    assert [row["all"] for row in rows] == [[time] for time in FAR * 2]
    rerank_files(tiny.path, files, tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl")[0]["at"] == "9999-12-31 00:00:00.000000"


def named(name: str, kind: pa.DataType, **more: Any) -> pa.DataType:
    return pa.list_(pa.field(name, kind, **more))


SAME = [
    (named("item", pa.string()), named("element", pa.string())),
    (named("item", pa.string()), named("item", pa.string(), nullable=False)),
    (
        named("element", pa.string()),
        named("element", pa.string(), metadata={"PARQUET:field_id": "3"}),
    ),
    (pa.list_(pa.string()), pa.large_list(pa.string())),
    (pa.list_(pa.string()), pa.list_view(pa.string())),
    (pa.list_(pa.float32()), pa.list_(pa.float32(), 1)),
    (pa.list_(pa.null()), pa.list_(pa.string())),
    (pa.map_(pa.string(), pa.string()), pa.map_(pa.large_string(), pa.string())),
    (
        pa.struct([("a", pa.string()), ("b", pa.int64())]),
        pa.struct([("b", pa.int64()), ("a", pa.string())]),
    ),
    (pa.struct([("a", pa.int64())]), pa.struct([("a", pa.int64()), ("b", pa.string())])),
    (pa.binary(), pa.large_binary()),
    (pa.timestamp("us", "UTC"), pa.timestamp("us", "Etc/UTC")),
    (pa.timestamp("us"), pa.timestamp("ms")),
    (pa.timestamp("ns"), pa.timestamp("us")),
    (pa.list_(pa.null()), pa.list_(pa.struct([("a", pa.int64())]))),
    (pa.int32(), pa.int64()),
    (pa.int32(), pa.float64()),
    (pa.float32(), pa.float64()),
    (pa.string(), pa.dictionary(pa.int32(), pa.string())),
]
OTHER = [
    (pa.int64(), pa.string()),
    (pa.int64(), pa.float64()),
    (pa.int64(), pa.uint64()),
    (pa.bool_(), pa.int64()),
    (pa.binary(), pa.string()),
    (pa.list_(pa.int64()), pa.list_(pa.string())),
    (pa.map_(pa.string(), pa.binary()), pa.map_(pa.string(), pa.string())),
    (pa.map_(pa.string(), pa.int64()), pa.map_(pa.string(), pa.float64())),
    (pa.int64(), pa.decimal128(5, 2)),
    (pa.list_(pa.string()), pa.string()),
    (pa.timestamp("us"), pa.date32()),
    (pa.timestamp("us"), pa.timestamp("us", "UTC")),
]


PLAIN = {"null": None, "int": 7, "float": 0.5, "double": 0.5, "map": [("k", "v")]}
PLAIN |= {"timestamp": datetime(2020, 1, 2), "binary": b"x", "large_binary": b"x"}


def value(kind: pa.DataType) -> Any:
    name = str(kind).split("[")[0].split("<")[0].rstrip("0123456789")
    if pa.types.is_struct(kind):
        return {field.name: value(field.type) for field in kind}
    if "list" in name:
        return [value(kind.value_type)]
    return PLAIN.get(name, "x")


@pytest.mark.parametrize(("one", "other"), SAME, ids=str)
def test_types_of_one_meaning_are_joined(
    tiny: ModelFolder, tmp_path: Path, one: pa.DataType, other: pa.DataType
) -> None:
    files = []
    for number, kind in enumerate((one, other)):
        files.append(tmp_path / f"{number}.parquet")
        pq.write_table(table(v=pa.array([value(kind)] * 2, kind)), files[-1])
    for out in ("out.jsonl", "out.parquet"):
        rerank_files(tiny.path, files, tmp_path / out)
    rows = pq.read_table(tmp_path / "out.parquet")["v"].to_pylist()
    for row, kind in zip(rows, (one, one, other, other), strict=True):
        expected = value(kind)
        if isinstance(expected, dict):
            assert expected.items() <= row.items()
        elif isinstance(expected, datetime):
            assert row.replace(tzinfo=None) == expected
        else:
            assert row == expected


@pytest.mark.parametrize(("one", "other"), OTHER, ids=str)
def test_types_of_two_meanings_are_refused(one: pa.DataType, other: pa.DataType) -> None:
    schemas = [pa.schema([("v", one)]), pa.schema([("v", other)])]
    for order in (schemas, schemas[::-1]):
        with pytest.raises(BadInput, match=r"b\.parquet: column 'v' is of .*; cast one, leave"):
            one_schema(order, ["a.parquet", "b.parquet"], ())


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.timestamp("ns"), 1), pa.list_view(pa.timestamp("ns")), pa.list_(pa.date32())],
    ids=str,
)
def test_times_within_lists_are_written_as_text(
    tiny: ModelFolder, tmp_path: Path, kind: pa.DataType
) -> None:
    pq.write_table(table(v=pa.array([[1], [2]], kind)), tmp_path / "a.parquet")
    rerank_files(tiny.path, [tmp_path / "a.parquet"], tmp_path / "out.jsonl")
    first, second = (row["v"] for row in read(tmp_path / "out.jsonl"))
    assert str(first[0]).startswith("1970-01-0")
    assert len(second) == 1


@pytest.mark.parametrize("apart", [False, True])
def test_embeddings_that_an_input_lacks_are_null(
    tiny: ModelFolder, tmp_path: Path, apart: bool
) -> None:
    ids = ["q1", "q2"] if apart else ["q1", "q1"]
    emb = pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2))
    for name, columns in (("a", {"emb": emb}), ("b", {}), ("c", {"emb": emb})):
        pq.write_table(table(query_id=ids, **columns), tmp_path / f"{name}.parquet")
    files = [tmp_path / f"{name}.parquet" for name in "abc"]
    rerank_files(tiny.path, files, tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")["emb"].to_pylist()
    assert sorted(map(str, found)) == ["None"] * 2 + ["[1.0, 2.0]"] * 4


def test_a_date_that_does_not_fit_is_refused_before_anything_is_scored(
    tiny: ModelFolder, tmp_path: Path
) -> None:
    pq.write_table(table(at=pa.array(FAR, pa.timestamp("us"))), tmp_path / "a.parquet")
    pq.write_table(table(at=pa.array([0, 1], pa.timestamp("ns"))), tmp_path / "b.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(BadInput, match=r"a\.parquet: column 'at' has a value that timestamp\[ns\]"):
        rerank_files(tiny.path, files, tmp_path / "out.parquet")
    assert not list((tmp_path).glob("out*"))


def test_a_null_among_lists_of_one_size_is_named(tiny: ModelFolder, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    column = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    pq.write_table(table(doc_id=["a", "b"], emb=column), file)
    with pytest.raises(BadInput, match=r"column 'emb' of lists of one size holds a null"):
        rerank_files(tiny.path, [file], tmp_path / "out.parquet")
    made = rerank_files(tiny.path, [file], tmp_path / "out.parquet", ids_only=True)
    assert made.counts.scored == 2


def test_batches_are_bounded_by_bytes_and_row_groups(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    wide = pa.array([rng.bytes(100_000) for _ in range(1200)])
    pq.write_table(table(wide=wide), file, row_group_size=500)
    with open_parquet("a", located(str(file))) as opened:
        batches = list(batches_of(opened, ["text", "wide"]))
    assert sum(batch.num_rows for batch in batches) == 1200
    assert max(batch.nbytes for batch in batches) <= BATCH_BYTES
    same = pa.array(["x" * 100_000] * 1200)  # which takes the bytes of one in the file
    pq.write_table(table(wide=same), file)
    with open_parquet("a", located(str(file))) as opened:
        batches = list(batches_of(opened, ["text", "wide"]))
    assert sum(batch.num_rows for batch in batches) == 1200
    assert max(batch.nbytes for batch in batches) <= BATCH_BYTES


def test_files_in_folders_with_an_equals_sign(tiny: ModelFolder, tmp_path: Path) -> None:
    folder = tmp_path / "day=2024-01-01"
    folder.mkdir()
    rows = table(day=["x", "y"], query_id=["q1", "q2"])
    pq.write_table(pa.concat_tables([rows, rows]), folder / "in.parquet")  # whose queries lie apart
    rerank_files(tiny.path, [folder / "in.parquet"], folder / "out.parquet")
    made = pq.ParquetFile(folder / "out.parquet").read()
    assert made.column_names == ["query", "text", "day", "query_id", "score", "rank"]
    assert sorted(made["day"].to_pylist()) == ["x", "x", "y", "y"]
