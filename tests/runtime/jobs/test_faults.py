from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.machines import names_in, on_machine
from helpers.rankings import Record, read
from helpers.tiers import mostly_slow

from xopt.runtime import locks, rerank_files
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.jobs.inputs import parts
from xopt.runtime.jobs.job import Job, only_one
from xopt.runtime.jobs.output import target_of, write_part
from xopt.runtime.locks import LOCK, locked
from xopt.runtime.owners import new_mark

XOPT = Path(sys.executable).with_name("xopt")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs enough for some parts. Not to be changed."""
    rows = [
        {
            "query_id": f"q{i // 20}",
            "query": f"data {i // 20}",
            "doc_id": i,
            "text": f"index {i % 977}",
        }
        for i in range(30000)
    ]
    file = tmp_path_factory.mktemp("many") / "candidates.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)  # which cut through queries
    return str(file)


@pytest.fixture(scope="module")
def undisturbed(tiny: ModelFolder, many: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("undisturbed") / "whole.jsonl"
    rerank_files(tiny.path, [many], out)
    return out.read_bytes()


def begin(
    tiny: ModelFolder, many: str, out: Path, *more: str, limit: int | None = None
) -> subprocess.Popen[str]:
    """The command in a process of its own, whose files may have `limit` bytes."""

    asked = [str(XOPT), "rerank", str(tiny.path), many, "-o", str(out), *more]
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if limit is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    return process


def parts_done(out: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many parts are done, or the process is."""
    while (
        process.poll() is None
        and len(list((out.parent / f"{out.name}.job" / "done").glob("*.json"))) < number
    ):
        time.sleep(0.02)


def test_a_killed_job_goes_on_where_it_was(
    tiny: ModelFolder, many: str, undisturbed: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    process = begin(tiny, many, out)
    parts_done(out, 2, process)
    process.kill()
    process.communicate()
    assert not out.exists()
    done = len(list((tmp_path / "out.jsonl.job" / "done").glob("*.json")))
    made = rerank_files(tiny.path, [many], out)
    assert made.parts_now == made.parts - done < made.parts
    assert out.read_bytes() == undisturbed
    assert not [*tmp_path.rglob(".*"), *tmp_path.rglob("*.job/parts")]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("moved", [True, False])
def test_a_stop_as_the_file_is_moved_into_place_costs_nothing(
    tiny: ModelFolder,
    records: list[Record],
    tmp_path: Path,
    parquet: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    moved: bool,
) -> None:
    file, out = parquet(records), tmp_path / "out.jsonl"
    rerank_files(tiny.path, [file], tmp_path / "whole.jsonl")
    if there:
        out.write_text("before")
    stopped_in, step = (Job, "tidy") if moved else (Path, "replace")
    whole = getattr(stopped_in, step)

    def stopped(self: Job | Path, *to: Path) -> Path | None:
        if to and to[0] != out:
            return whole(self, *to)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(stopped_in, step, stopped)
        rerank_files(tiny.path, [file], out, force=there)
    assert out.exists() == (there or moved)
    assert rerank_files(tiny.path, [file], out).parts_now == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not [*tmp_path.rglob("*.job/parts")]


def test_ctrl_c_ends_with_a_line_and_the_job_goes_on(
    tiny: ModelFolder, many: str, undisturbed: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    process = begin(tiny, many, out)
    parts_done(out, 1, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Interrupted: " in said
    assert "Traceback" not in said
    rerank_files(tiny.path, [many], out)
    assert out.read_bytes() == undisturbed


def test_a_part_that_cannot_be_written_ends_the_job_with_a_line(
    tiny: ModelFolder, many: str, undisturbed: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    process = begin(tiny, many, out, limit=len(undisturbed) // 2)  # parts fit, the whole does not
    _, said = process.communicate()
    assert process.returncode == 2
    assert "out.jsonl: cannot be written (File too large); free some space" in said
    assert not out.exists()
    made = rerank_files(tiny.path, [many], out)
    assert made.parts_now == 0
    assert out.read_bytes() == undisturbed


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(
    tiny: ModelFolder, many: str, undisturbed: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    process = begin(tiny, many, out, "--workers", "2", "--threads", "1")
    parts_done(out, 1, process)
    children = [
        c
        for c in psutil.Process(process.pid).children(recursive=True)
        if "daft" in " ".join(c.cmdline())
    ]
    assert children  # the second may not have begun yet
    children[0].kill()
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert out.read_bytes() == undisturbed


def test_changed_inputs_and_models_and_other_wishes_are_refused(
    tiny: ModelFolder,
    tiny_copy: ModelFolder,
    records: list[Record],
    tmp_path: Path,
    parquet: Callable[..., str],
) -> None:
    file, out = parquet(records), tmp_path / "out.parquet"
    rerank_files(tiny.path, [file], out, top_k=5)
    before = out.read_bytes()
    with pytest.raises(BadInput, match="was begun with top_k=5, not 6"):
        rerank_files(tiny.path, [file], out, top_k=6)
    with pytest.raises(BadInput, match="was begun with the inputs"):
        rerank_files(tiny.path, [file, parquet(records[:3], "more.parquet")], out, top_k=5)
    tiny_copy.write(lambda manifest: manifest.__class__(**{**vars(manifest), "prompt": "query: "}))
    with pytest.raises(BadInput, match="was begun with another model folder"):
        rerank_files(tiny_copy.path, [file], out, top_k=5)
    parquet(records[1:])
    with pytest.raises(
        BadInput, match=r"candidates.parquet: changed since .*out.parquet.job was begun"
    ):
        rerank_files(tiny.path, [file], out, top_k=5)
    assert out.read_bytes() == before
    made = rerank_files(tiny.path, [file], out, top_k=6, force=True)
    assert made.counts.rows == len(records) - 1


def test_what_no_job_made_is_not_replaced(
    tiny: ModelFolder, records: list[Record], tmp_path: Path, parquet: Callable[..., str]
) -> None:
    file, out = parquet(records), tmp_path / "mine.jsonl"
    out.write_text("mine")
    with pytest.raises(
        BadInput,
        match="exists already; choose another place with `out=`, or replace it with `force=True`",
    ):
        rerank_files(tiny.path, [file], out)
    assert out.read_text() == "mine"
    assert not (tmp_path / "mine.jsonl.job").exists()
    rerank_files(tiny.path, [file], out, force=True)
    assert len(read(out)) == len(records)
    out.write_text("changed")
    with pytest.raises(BadInput, match="changed since it was made"):
        rerank_files(tiny.path, [file], out)
    out.unlink()
    rerank_files(tiny.path, [file], out)
    assert len(read(out)) == len(records)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").touch()
    for force in (False, True):
        with pytest.raises(BadInput, match="with files that no job made"):
            rerank_files(tiny.path, [file], tmp_path / "folder", force=force)


def test_a_part_that_was_lost_is_made_again(
    tiny: ModelFolder, many: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parts.PART_ROWS, "cpu", 10_000)
    out = tmp_path / "folder"
    made = rerank_files(tiny.path, [many], out)
    assert made.parts == made.parts_now == 3
    files = {file.name: file.read_bytes() for file in out.iterdir()}
    (out / "part-000001.parquet").unlink()
    assert rerank_files(tiny.path, [many], out).parts_now == 1
    assert {file.name: file.read_bytes() for file in out.iterdir()} == files
    assert rerank_files(tiny.path, [many], out).parts_now == 0


def test_damaged_files_are_named_and_what_was_done_is_kept(
    tiny: ModelFolder, many: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "candidates.parquet"
    cut.write_bytes(Path(many).read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"candidates.parquet: not a Parquet file"):
        rerank_files(tiny.path, [cut], tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("force", [False, True])
def test_two_processes_do_not_work_at_one_job(
    tiny: ModelFolder,
    records: list[Record],
    tmp_path: Path,
    parquet: Callable[..., str],
    force: bool,
) -> None:
    out = tmp_path / "out.parquet"
    rerank_files(tiny.path, [parquet(records)], out)
    half = tmp_path / "out.parquet.job" / "done" / f".000000.json.new-{new_mark()}"
    with locked(tmp_path / "out.parquet.job"):
        half.touch()
        with pytest.raises(
            BadInput, match=f"another process works at this job .process {os.getpid()} on"
        ):
            rerank_files(tiny.path, [parquet(records)], out, force=force)
        assert half.exists()
        target_of(str(out)).check_free(force=True)  # the lock is no file of a user's own


def test_a_job_that_another_process_took_over_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "out.jsonl"
    with only_one(target_of(str(place))) as target:
        (target.job / "parts").mkdir()
        write_part(target, 0, ["ours"])
        (target.job / LOCK).write_text("another's")
        for write in (
            lambda: write_part(target, 1, ["ours"]),
            lambda: target.joined([0]).__enter__(),
            lambda: target.clear(keep=target.job),
        ):
            with pytest.raises(BadInput, match=r"out.jsonl.job: another process took over here"):
                write()
    assert names_in(tmp_path) == ["out.jsonl.job"]
    assert names_in(tmp_path / "out.jsonl.job") == [LOCK, "parts"]
    assert names_in(tmp_path / "out.jsonl.job" / "parts") == ["part-000000.jsonl"]


RERANK = """
import xopt.runtime
xopt.runtime.rerank_files(here, [sys.argv[2]], sys.argv[3])
"""


@pytest.mark.slow
def test_a_driver_that_stood_still_does_no_harm_to_the_one_that_took_over(
    tiny: ModelFolder, many: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rerank_files(tiny.path, [many], tmp_path / "whole.jsonl", variant="onnx-int8")
    out = tmp_path / "out.jsonl"
    first = on_machine("host-a", RERANK, tiny.path, many, out)
    parts_done(out, 1, first)
    first.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(locks, "STALE_S", 1.0)
    rerank_files(tiny.path, [many], out, variant="onnx-int8", force=True)
    first.send_signal(signal.SIGCONT)
    said = first.communicate()[1]
    assert "another process took over here while this one stood still" in said
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert names_in(tmp_path / "out.jsonl.job") == ["done", "job.json"]


@pytest.mark.parametrize("number", mostly_slow([signal.SIGTERM, signal.SIGINT], {signal.SIGTERM}))
def test_a_termination_ends_workers_too(
    tiny: ModelFolder, many: str, undisturbed: bytes, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out.jsonl"
    process = begin(tiny, many, out, "--workers", "2", "--threads", "1")
    parts_done(out, 1, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 128 + number
    assert not list(tmp_path.rglob("*.begun"))  # which would blame parts
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert (len(gone), alive) == (len(children), [])
    rerank_files(tiny.path, [many], out)
    assert out.read_bytes() == undisturbed
