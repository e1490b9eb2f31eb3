from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from helpers.rankings import Record

from xopt.runtime import rerank_files
from xopt.runtime.cascade.fingerprint import model_fingerprint
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.jobs.inputs import parts
from xopt.runtime.jobs.score import PartScorer

Change = Callable[[dict[str, Any]], object]
OUT = "out.jsonl"


@pytest.fixture(scope="module")
def stopped(
    tiny: ModelFolder, records: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with inputs, and a job over them that was stopped after its first part.

    Not to be changed.
    """
    folder = tmp_path_factory.mktemp("stopped")
    half = len(records) // 2
    pq.write_table(pa.Table.from_pylist(records[:half]), folder / "first.parquet")
    lines = [json.dumps(record) + "\n" for record in records[half:]]
    (folder / "second.jsonl").write_text("".join(lines), encoding="utf-8")
    inputs = [folder / "first.parquet", folder / "second.jsonl"]
    rerank_files(tiny.path, inputs, folder / "whole.jsonl", variant="onnx-fp32")
    read = PartScorer.read

    def read_one(self: PartScorer, part: parts.Part) -> object:
        if part.number:
            raise KeyboardInterrupt
        return read(self, part)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setitem(parts.PART_ROWS, "cpu", 40)
        patched.setattr(PartScorer, "read", read_one)
        rerank_files(tiny.path, inputs, folder / OUT, variant="onnx-fp32")
    return folder


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "copied")


INPUTS = ("first.parquet", "second.jsonl")


def go_on(model: ModelFolder, folder: Path, mount: str | Path = "", **options: Any) -> int:
    """Go on with the job in a folder, and give the number of parts that were done before."""
    inputs = [f"{mount or folder}/{name}" for name in INPUTS]
    made = rerank_files(model.path, inputs, folder / OUT, **options)
    assert (folder / OUT).read_bytes() == (folder / "whole.jsonl").read_bytes()
    return made.parts - made.parts_now


@pytest.fixture
def store() -> Iterator[fsspec.AbstractFileSystem]:
    store = fsspec.filesystem("memory")
    yield store
    store.rm("/moved", recursive=True)


def change_record(folder: Path, change: Change) -> bytes:
    """Change a job's record, and give its bytes."""
    file = folder / f"{OUT}.job" / "job.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    return file.read_bytes()


def test_a_job_of_an_earlier_version_goes_on(tiny: ModelFolder, copied: Path) -> None:
    def as_before(values: dict[str, Any]) -> None:
        values["model"] = model_fingerprint(tiny, "onnx-fp32", cascade=False, like="0" * 64)
        del values["settings"]["depth"]
        del values["settings"]["score"]
        del values["settings"]["columns"]["first"]
        del values["files"][0]["columns"]["title"]
        del values["finished"]

    change_record(copied, as_before)
    assert go_on(tiny, copied) == 1


def test_what_a_newer_version_left_empty_is_no_hindrance(tiny: ModelFolder, copied: Path) -> None:
    def add(values: dict[str, Any]) -> None:
        places = (values, values["settings"], values["settings"]["columns"], values["files"][0])
        for place in places:
            place["new"] = None

    change_record(copied, add)
    note = copied / f"{OUT}.job" / "done" / "000000.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "new": 7}))
    assert go_on(tiny, copied) == 1


@pytest.mark.parametrize(
    ("change", "which"),
    [
        (lambda values: values.update(format=3), r"newer xopt \(format 3\)"),
        (lambda values: values.update(format=1), r"earlier xopt \(format 1\)"),
        (lambda values: values.update(new=1), "which has 'new'"),
        (lambda values: values["settings"].update(new="x"), "which has 'new'"),
        (lambda values: values["settings"]["columns"].update(new="x"), "which has 'new'"),
        (lambda values: values["sources"][0].update(new="x"), "which has 'new'"),
        (lambda values: values["sources"][0]["place"].update(new="x"), "which has 'new'"),
        (lambda values: values["files"][0].update(new="x"), "which has 'new'"),
        (lambda values: values["files"][0]["columns"].update(new="x"), "which has 'new'"),
    ],
)
def test_a_job_of_another_version_is_refused_and_kept(
    tiny: ModelFolder, copied: Path, change: Change, which: str
) -> None:
    before = change_record(copied, change)
    said = rf"out.jsonl.job: was begun by an? .*{which}.*; use that version, or give another `out="
    with pytest.raises(BadInput, match=said) as refused:
        go_on(tiny, copied)
    assert "\n" not in str(refused.value)
    assert "force" not in str(refused.value)
    assert (copied / f"{OUT}.job" / "job.json").read_bytes() == before
    assert (copied / f"{OUT}.job" / "parts" / "part-000000.jsonl").is_file()


def test_a_fingerprint_of_a_newer_version_is_refused(tiny: ModelFolder, copied: Path) -> None:
    change_record(copied, lambda values: values.update(model="3:0123"))
    with pytest.raises(BadInput, match=r"by a newer xopt \(scheme 3\); use that version"):
        go_on(tiny, copied)


def test_the_command_says_it_in_one_line(
    xopt: Callable[..., Result], tiny: ModelFolder, copied: Path
) -> None:
    change_record(copied, lambda values: values["settings"].update(new="x"))
    result = xopt("rerank", tiny.path, copied / "first.parquet", "-o", copied / OUT)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith(
        "was begun by a newer xopt (which has 'new'); use that version, or give another --out"
    )


def test_the_column_that_differs_is_named(tiny: ModelFolder, copied: Path) -> None:
    with pytest.raises(BadInput, match="was begun with query='', not 'text'; give another `out="):
        go_on(tiny, copied, query="text")
    with pytest.raises(BadInput, match="was begun with doc_id=None, not 'n'; give another `out="):
        go_on(tiny, copied, doc_id="n")


def test_a_damaged_record_is_told_from_one_of_another_version(
    tiny: ModelFolder, copied: Path
) -> None:
    change_record(copied, lambda values: values.pop("files"))
    with pytest.raises(BadInput, match=r"job.json: is damaged \('files'\); bring it back"):
        go_on(tiny, copied)


def test_a_job_goes_on_where_it_was_moved_to_with_its_inputs(
    tiny: ModelFolder, copied: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.move(copied, tmp_path / "moved"))
    for name in INPUTS:
        os.utime(moved / name, (0, 0))
    assert go_on(tiny, moved) == 1


def test_inputs_lie_under_another_mount(tiny: ModelFolder, copied: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    for name in INPUTS:
        shutil.move(copied / name, mount / name)
        os.utime(mount / name, (0, 0))
    (tmp_path / "other").mkdir()
    for name in INPUTS:
        shutil.copy(mount / name, tmp_path / "other" / name)
    (tmp_path / "other" / INPUTS[1]).write_text('{"query": "data", "text": "index"}\n')
    with pytest.raises(BadInput, match=r"was begun with the inputs .*, not .*other/first.parquet"):
        go_on(tiny, copied, tmp_path / "other")
    assert go_on(tiny, copied, mount) == 1
    (mount / INPUTS[0]).write_bytes((mount / INPUTS[0]).read_bytes()[::-1])
    with pytest.raises(BadInput, match=r"mount/first.parquet: changed since .* was begun"):
        go_on(tiny, copied, mount)


def test_local_inputs_were_moved_to_a_store(
    tiny: ModelFolder, copied: Path, store: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    store.put(str(copied), "/moved/here", recursive=True)
    mount = Path(shutil.move(copied / INPUTS[0], tmp_path / INPUTS[0])).parent
    shutil.move(copied / INPUTS[1], mount / INPUTS[1])
    assert go_on(tiny, copied, "memory://moved/here") == 1
    for place in ("memory://moved/here", mount):  # all is done, and known by its content still
        assert go_on(tiny, copied, place) == 3
    store.pipe("/moved/here/first.parquet", b"other")
    with pytest.raises(BadInput, match=r"changed since .* was begun; put it back"):
        go_on(tiny, copied, "memory://moved/here")


def test_inputs_on_a_store_are_known_where_they_lie_alone(
    tiny: ModelFolder, copied: Path, store: fsspec.AbstractFileSystem
) -> None:
    for place in ("here", "there"):
        store.put(str(copied / INPUTS[0]), f"/moved/{place}/first.parquet")
    out = copied / "stored.jsonl"
    rerank_files(tiny.path, ["memory://moved/here/first.parquet"], out)
    assert not rerank_files(tiny.path, ["memory://moved/here/first.parquet"], out).parts_now
    for other in ("memory://moved/there/first.parquet", copied / INPUTS[0]):
        with pytest.raises(BadInput, match=r"was begun with the inputs /moved/here/first.parquet"):
            rerank_files(tiny.path, [other], out)


def test_a_collection_and_its_run_may_move(tiny: ModelFolder, tmp_path: Path) -> None:
    beir = tmp_path / "before" / "beir"
    beir.mkdir(parents=True)
    documents = [{"_id": f"d{n}", "text": f"index {n}"} for n in range(3)]
    (beir / "corpus.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "data"}) + "\n")
    (beir / "first.run").write_text("q Q0 d2 1 9 bm25\nq Q0 d1 2 8 bm25\n")
    out = tmp_path / "before" / "out.run"
    assert rerank_files(tiny.path, [beir], out, run=str(beir / "first.run")).parts_now == 1
    moved = Path(shutil.move(tmp_path / "before", tmp_path / "after"))
    beir = moved / "beir"
    out = moved / "out.run"
    assert rerank_files(tiny.path, [beir], out, run=str(beir / "first.run")).parts_now == 0
    (beir / "first.run").write_text("q Q0 d1 1 9 bm25\n")
    with pytest.raises(BadInput, match=r"the inputs .*before/beir, not .*after/beir"):
        rerank_files(tiny.path, [beir], out, run=str(beir / "first.run"))
    with pytest.raises(BadInput, match=r"was begun with run='.*first.run', not None"):
        rerank_files(tiny.path, [beir], out)


def test_a_data_set_on_this_machine_may_move(tiny: ModelFolder, copied: Path) -> None:
    (copied / "set").mkdir()
    shutil.copy(copied / INPUTS[0], copied / "set" / "test.parquet")
    out = copied / "set.jsonl"
    assert rerank_files(tiny.path, [f"hf:{copied}/set"], out).parts_now == 1
    shutil.move(copied / "set", copied / "moved")
    assert rerank_files(tiny.path, [f"hf:{copied}/moved"], out).parts_now == 0


KILLED = """
import os, signal, sys
from xopt.runtime import rerank_files
from xopt.runtime.jobs.score import PartScorer
read = PartScorer.read
def killed(self, part):
    if part.number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, part)
PartScorer.read = killed
model, out, *inputs = sys.argv[1:]
rerank_files(model, inputs, out)
"""


def test_a_part_that_has_killed_the_job_is_named(
    tiny: ModelFolder, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = [str(copied / name) for name in INPUTS]
    command = [sys.executable, "-c", KILLED, str(tiny.path), str(copied / OUT), *inputs]
    for _ in range(2):
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert go_on(tiny, copied) == 2
    assert "was killed within part 2 (2 so far); if memory ran out, give" in caplog.text
    caplog.clear()
    assert go_on(tiny, copied) == 3
    assert "killed within" not in caplog.text
    assert not list(copied.rglob("*.begun"))
