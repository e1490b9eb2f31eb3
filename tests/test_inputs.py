"""Every command takes every input: by path, pattern and folder, here and on a store."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from xopt.runtime.data import candidates
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder

Xopt = Callable[..., Result]

ROWS = [
    {"query_id": f"q{q}", "query": f"data {q}", "doc_id": f"d{d}", "text": f"index {d}"}
    for q in range(2)
    for d in range(3)
]
PAIRS = [(row["query_id"], row["doc_id"], row["query"], row["text"]) for row in ROWS]
NAMES = {"query_id": "qid", "query": "question", "doc_id": "pid", "text": "passage"}
FILES = (".jsonl", ".jsonl.gz", ".ndjson", ".csv", ".tsv", ".tsv.gz", ".parquet")
READING = {  # the commands that read --data, and what else each needs to come that far
    "optimize": ("MODEL", "-o", "OUT"),
    "validate": ("DIR",),
    "bench": ("DIR",),
    "cascade": ("DIR",),
    "shrink": ("DIR", "-o", "OUT", "--layers", "1"),
    "quantize": ("DIR", "--int8"),
    "tune": ("DIR",),
}


class Read(Exception):  # no error: what was read, where the work would begin
    """Candidates that a command has read."""


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    kind = path.name.removesuffix(".gz")
    if kind.endswith((".jsonl", ".ndjson")):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        comma = "," if kind.endswith(".csv") else "\t"
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        text = "".join(comma.join(map(str, line)) + "\n" for line in lines)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_beir(folder: Path) -> None:
    documents = {row["doc_id"]: row["text"] for row in ROWS}
    queries = {row["query_id"]: row["query"] for row in ROWS}
    for name, texts in (("corpus", documents), ("queries", queries)):
        write(folder / f"{name}.jsonl", [{"_id": i, "text": text} for i, text in texts.items()])
    judged = [{"query-id": q, "corpus-id": "d0", "score": 1} for q in queries]
    write(folder / "qrels" / "test.tsv", judged)


@pytest.fixture
def inputs(tmp_path: Path) -> Iterator[Path]:
    """Folders with the candidates in each format; the same lies at memory://inputs."""
    root = tmp_path / "inputs"
    for suffix in FILES:
        write(root / suffix[1:] / f"rows{suffix}", ROWS)
    write_beir(root / "beir" / "set")
    write(root / "hf" / "test.parquet", ROWS)
    store = fsspec.filesystem("memory")
    store.put(str(root), "/inputs", recursive=True)
    yield root
    store.rm("/inputs", recursive=True)


def ways() -> Iterator[Any]:
    for suffix in FILES:
        folder = suffix[1:]
        for name in (f"{folder}/rows{suffix}", f"{folder}/r*", folder):
            for start in ("INPUTS", "memory://inputs"):
                yield pytest.param(f"{start}/{name}", id=f"{start}-{name}")
    for name in ("beir/set", "beir/s*"):
        for start in ("INPUTS", "memory://inputs"):
            yield pytest.param(f"{start}/{name}", id=f"{start}-{name}")
    yield pytest.param("hf:INPUTS/hf", id="hf")
    yield pytest.param("irds:xopt-inputs", id="irds")


@pytest.fixture
def irds(inputs: Path) -> None:
    """A dataset of ir_datasets with the same candidates."""
    import ir_datasets
    from ir_datasets.datasets.base import Dataset
    from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
    from ir_datasets.util import LocalDownload

    documents = {row["doc_id"]: row["text"] for row in ROWS}
    queries = {row["query_id"]: row["query"] for row in ROWS}
    for name, texts in (("docs", documents), ("queries", queries)):
        lines = "".join(f"{i}\t{text}\n" for i, text in texts.items())
        (inputs.parent / f"{name}.tsv").write_text(lines)
    (inputs.parent / "qrels").write_text("".join(f"{q} 0 d0 1\n" for q in queries))
    dataset = Dataset(
        TsvDocs(LocalDownload(inputs.parent / "docs.tsv")),
        TsvQueries(LocalDownload(inputs.parent / "queries.tsv")),
        TrecQrels(LocalDownload(inputs.parent / "qrels"), {1: "relevant"}),
    )
    ir_datasets.registry._registered.pop("xopt-inputs", None)
    ir_datasets.registry.register("xopt-inputs", dataset)


@pytest.mark.parametrize("given", list(ways()))
def test_every_command_reads_every_input(
    xopt: Xopt,
    tiny: ModelFolder,
    inputs: Path,
    irds: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
) -> None:
    data = given.replace("INPUTS", str(inputs))
    read_candidates = candidates.read_candidates

    def read(*arguments: Any, **options: Any) -> Candidates:
        raise Read(read_candidates(*arguments, **options))

    for command, needs in READING.items():
        with monkeypatch.context() as patch:
            patch.setattr(candidates, "read_candidates", read)
            places = {"DIR": str(tiny.path), "MODEL": "demo", "OUT": str(tmp_path / "out")}
            asked = [places.get(each, each) for each in needs]
            result = xopt(command, *asked, "--data", data)
        assert isinstance(result.exception, Read), (command, result.output)
        found: Candidates = result.exception.args[0]
        pairs = [(row.query_id, row.doc_id, row.query, row.text) for row in found.rows]
        assert sorted(pairs) == sorted(PAIRS), command
    out = tmp_path / "ranked.jsonl"
    result = xopt("rerank", str(tiny.path), data, "-o", str(out))
    assert result.exit_code == 0, result.output
    ranked = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted((r["query_id"], r["doc_id"], r["query"], r["text"]) for r in ranked) == PAIRS


@pytest.mark.parametrize("suffix", FILES)
def test_columns_are_named_in_every_command(
    xopt: Xopt,
    tiny: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    file = tmp_path / f"named{suffix}"
    write(file, [{NAMES[name]: value for name, value in row.items()} for row in ROWS])
    options = [f"--{name.replace('_', '-')}={column}" for name, column in NAMES.items()]
    read_candidates = candidates.read_candidates

    def read(*arguments: Any, **options: Any) -> Candidates:
        raise Read(read_candidates(*arguments, **options))

    with monkeypatch.context() as patch:
        patch.setattr(candidates, "read_candidates", read)
        result = xopt("validate", str(tiny.path), "--data", str(file), *options)
    assert isinstance(result.exception, Read), result.output
    assert len(result.exception.args[0].rows) == len(ROWS)
    result = xopt("rerank", str(tiny.path), str(file), "-o", str(tmp_path / "o.jsonl"), *options)
    assert result.exit_code == 0, result.output
    result = xopt("validate", str(tiny.path), "--data", str(file))
    assert result.exit_code == 2
    assert (
        "no column 'query', only qid, question, pid, passage; name the one to take with --query"
        in (" ".join(result.output.split()))
    )


def test_the_same_columns_have_the_same_options(xopt: Xopt) -> None:
    for command in (*READING, "rerank"):
        text = " ".join(xopt(command, "--help").output.split())
        for option in ("--query COLUMN", "--text COLUMN", "--query-id COLUMN", "--doc-id COLUMN"):
            assert option in text, command


def test_an_option_that_an_input_has_no_use_for_is_refused(
    xopt: Xopt, tiny: ModelFolder, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    for more in (["--split", "dev"], ["--run", str(tiny.path / "xopt.json")]):
        for asked in (
            ["validate", str(tiny.path), "--data", "demo"],
            ["rerank", str(tiny.path), "demo", "-o", str(out)],
        ):
            result = xopt(*asked, *more)
            assert result.exit_code == 2
            assert f"{more[0]} " in result.output
    assert not out.exists()
