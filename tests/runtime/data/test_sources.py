"""What a user names is found, wherever it lies; what would be read wrongly is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xopt.runtime import rerank_files
from xopt.runtime.data.candidates import read_candidates
from xopt.runtime.data.places import located, shown
from xopt.runtime.data.sources import find_sources
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import machine_name

TABLE = pa.table({"query": ["data"], "text": ["index"]})


def parquet(path: Path, table: pa.Table = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table"),
        (".hoodie/hoodie.properties", "a Hudi table"),
        ("metadata/v1.metadata.json", "an Iceberg table"),
        ("_spark_metadata/0", "a table of Spark's streaming"),
    ],
)
def test_a_table_whose_log_says_which_files_count_is_refused(
    tmp_path: Path, log: str, said: str
) -> None:
    root = tmp_path / "lake" / "t=1"
    file = parquet(root / "day=1" / "a.parquet")
    (root / log).parent.mkdir(parents=True)
    (root / log).write_text("{}")
    for given in (root, tmp_path / "lake", file, f"{root}/day=*/*.parquet", f"{tmp_path}/l*"):
        with pytest.raises(BadInput, match=f"{said}: read it with"):
            find_sources([str(given)])
        with pytest.raises(BadInput, match=f"{said}: read it with"):
            read_candidates(str(given))


def test_a_folder_called_metadata_is_no_table(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "notes.txt").touch()
    assert len(find_sources([str(tmp_path)])) == 1


@pytest.mark.parametrize("folder", ["day=10%3A30", "a b", "a#b", "50%", "ä"])
def test_names_are_what_they_are(tmp_path: Path, folder: str) -> None:
    parquet(tmp_path / folder / "a.parquet")
    store = fsspec.filesystem("memory")
    with store.open(f"/names/{folder}/a.parquet", "wb") as stream:
        pq.write_table(TABLE, stream)
    address = tmp_path.as_uri()
    for given in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/*/*.parquet", address, f"{address}/*"):
        (source,) = find_sources([str(given)])
        assert source.place is not None
        assert source.place.path == f"{tmp_path}/{folder}/a.parquet"
        assert [row.text for row in read_candidates(str(given)).rows] == ["index"]
    for given in ("memory://names", f"memory://names/{folder}", "memory://names/*/*"):
        if folder != "a#b" or given != f"memory://names/{folder}":
            assert [row.text for row in read_candidates(given).rows] == ["index"]
    store.rm("/names", recursive=True)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of files in `tmp_path`, which knows no ranges."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined] # quiet
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_signed_address_is_read_and_its_signature_kept_secret(
    tiny: ModelFolder, tmp_path: Path, served: str
) -> None:
    wide = TABLE.append_column("wide", pa.array(["x" * (6 << 20)]))  # more than is fetched at once
    parquet(tmp_path / "a.parquet", wide)
    (tmp_path / "b.jsonl").write_text('{"query": "data", "text": "shard"}\n')
    signed = [f"{served}/a.parquet?sig=x%2By", f"{served}/b.jsonl?sig=1#part"]
    made = rerank_files(tiny.path, signed, tmp_path / "out.jsonl", ids_only=False)
    assert made.counts.scored == 2
    assert "sig=" not in (tmp_path / "out.jsonl.job" / "job.json").read_text()
    others = [name.replace("sig=", "sig=2") for name in signed]
    assert rerank_files(tiny.path, others, tmp_path / "out.jsonl").parts_now == 0
    with pytest.raises(BadInput, match=r"c\.xlsx: unknown kind '.xlsx'; give") as error:
        (tmp_path / "c.xlsx").touch()
        find_sources([f"{served}/c.xlsx?sig=1"])
    assert "sig=" not in str(error.value)


def test_what_follows_the_path_of_an_address_is_not_shown() -> None:
    assert shown("s3://b/a.parquet?endpoint_override=127.0.0.1&scheme=http") == "s3://b/a.parquet"
    assert shown("https://h/a.parquet#x") == "https://h/a.parquet"
    assert shown("s3://b/part-?.parquet") == "s3://b/part-?.parquet"
    assert shown("what?=#.jsonl") == "what?=#.jsonl"
    assert located("file:///tmp/a%20b").path == "/tmp/a b"


def test_what_other_jobs_made_is_not_read_with_their_inputs(
    tiny: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parquet(tmp_path / "in" / "a.parquet")
    for out in ("o1.parquet", "o2", "deep/o3.jsonl"):
        (tmp_path / "in" / out).parent.mkdir(exist_ok=True)
        rerank_files(tiny.path, [tmp_path / "in"], tmp_path / "in" / out)
    assert "files that jobs of `xopt rerank` made are left out" in caplog.text
    assert len(find_sources([f"{tmp_path}/in/*"])) == 1
    # What is named itself is read, by a second stage say.
    again = rerank_files(
        tiny.path, [tmp_path / "in" / "o2"], tmp_path / "o4.jsonl", score="second", rank="place"
    )
    assert again.counts.rows == 1


def test_a_job_that_was_moved_goes_on(tiny: ModelFolder, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    lines = [{"query": f"data {n}", "text": "index"} for n in range(3)]
    (old / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parquet(old / "in.parquet", pa.table({"query": ["rank"], "text": ["index"]}))
    names = ["in.jsonl", "in.parquet"]
    rerank_files(tiny.path, [old / name for name in names], old / "out.jsonl")
    before = (old / "out.jsonl").read_bytes()
    new = old.rename(tmp_path / "new")
    made = rerank_files(tiny.path, [new / name for name in names], new / "out.jsonl")
    assert made.parts_now == 0
    (new / "out.jsonl").unlink()
    made = rerank_files(tiny.path, [new / name for name in names], new / "out.jsonl")
    assert (new / "out.jsonl").read_bytes() == before


def test_what_has_several_names_is_one_file(tmp_path: Path) -> None:
    parquet(tmp_path / "real" / "a.parquet")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "b.parquet").symlink_to("a.parquet")
    for given in (tmp_path, tmp_path / "real", f"{tmp_path}/*/a.parquet"):
        with pytest.raises(BadInput, match="named twice, also as"):
            find_sources([str(given)])


def test_a_folder_on_a_store_may_be_called_as_a_pattern(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    with store.open("/odd[1]/a.parquet", "wb") as stream:
        pq.write_table(TABLE, stream)
    assert len(find_sources(["memory://odd[1]"])) == 1
    store.rm_file("/odd[1]/a.parquet")


@pytest.mark.parametrize("names", [("b1", "b2"), ("b1", "a.parquet")])
def test_a_collection_beside_other_data_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if name.endswith(".parquet"):
            parquet(tmp_path / name)
        else:
            (tmp_path / name / "qrels").mkdir(parents=True)
    with pytest.raises(BadInput, match="b1: a collection beside other data; name one data set"):
        read_candidates(f"{tmp_path}/*")


def test_secrets_of_an_address_are_not_shown() -> None:
    assert shown("s3://KEY:SECRET@bucket/a.parquet") == "s3://bucket/a.parquet"
    assert shown("https://h/a.parquet?SECRET") == "https://h/a.parquet"


def test_other_inputs_are_not_taken_for_those_of_a_job(tiny: ModelFolder, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in ("a", "b"):
        with store.open(f"/jobs/{name}.jsonl", "wb") as stream:
            stream.write(b'{"query": "data", "text": "%s"}\n' % name.encode())
    out = tmp_path / "out.jsonl"
    rerank_files(tiny.path, ["memory://jobs/a.jsonl"], out)
    with pytest.raises(BadInput, match="was begun with the inputs"):
        rerank_files(tiny.path, ["memory://jobs/b.jsonl"], out)
    (tmp_path / "a.csv").write_text("query,text\ndata,index\n")
    rerank_files(tiny.path, [tmp_path / "a.csv"], tmp_path / "local.jsonl")
    (tmp_path / "a.csv").rename(tmp_path / "c.csv")
    assert rerank_files(tiny.path, [tmp_path / "c.csv"], tmp_path / "local.jsonl").parts_now == 0
    (tmp_path / "c.csv").write_text("query,text\ndata,shard\n")
    with pytest.raises(BadInput, match=r"c\.csv"):
        rerank_files(tiny.path, [tmp_path / "c.csv"], tmp_path / "local.jsonl")
    store.rm("/jobs", recursive=True)


def test_a_job_keeps_the_variant_that_it_was_begun_with(
    tiny_copy: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = parquet(tmp_path / "a.parquet")
    machine = machine_name("cpu")

    def recommend(variant: str | None) -> None:
        measured = {machine: {"recommended": variant, "variants": {}}}
        tiny_copy.write(lambda manifest: replace(manifest, measured=measured))

    recommend("onnx-int8")
    made = rerank_files(tiny_copy.path, [file], tmp_path / "out.jsonl")
    assert made.variant == "onnx-int8"
    assert f"onnx-int8 scores, which `xopt optimize` recommended on {machine}" in caplog.text
    recommend(None)  # as another core limit does, or a later measurement
    again = rerank_files(tiny_copy.path, [file], tmp_path / "out.jsonl")
    assert (again.variant, again.parts_now) == ("onnx-int8", 0)
    assert rerank_files(tiny_copy.path, [file], tmp_path / "new.jsonl").variant == "onnx-fp32"
    with pytest.raises(BadInput, match="was begun with variant='onnx-int8', not 'onnx-fp32'"):
        rerank_files(tiny_copy.path, [file], tmp_path / "out.jsonl", variant="onnx-fp32")
