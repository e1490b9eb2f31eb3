"""Kills, full disks, dead workers and lost nodes: whether each job, resumed, equals an
undisturbed one.

    python docs/measure/faults.py DIR [kills] [disks] [workers] [nodes]

DIR is a model folder, a tiny one for many faults in little time. Full disks need the right to
mount (root).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

XOPT = Path(sys.executable).with_name("xopt")
ROWS, DEPTH = 60_000, 20
TIMES = {"kills": 50, "disks": 10, "workers": 10, "nodes": 3}


def candidates(path: Path, rows: int = ROWS) -> None:
    """Short pairs of random words."""
    draw = random.Random(0)
    words = ["data", "search", "index", "shard", "query", "rank", "the", "of", "model", "file"]
    texts = [" ".join(draw.choices(words, k=8)) for _ in range(rows)]
    numbers = range(rows)
    table = {
        "query_id": [f"q{i // DEPTH}" for i in numbers],
        "query": [f"{texts[i - i % DEPTH][:20]} {i // DEPTH}" for i in numbers],
        "doc_id": [f"d{i}" for i in numbers],
        "text": texts,
    }
    pq.write_table(pa.table(table), path, row_group_size=rows // 7)


def command(model: str, data: Path, out: Path, *more: str) -> list[str]:
    """The job's command."""
    return [str(XOPT), "-q", "rerank", model, str(data), "-o", str(out), *more]


def resumed(asked: list[str], out: Path, expected: bytes) -> None:
    """Run a job to its end, and check that it equals the undisturbed one, with nothing
    half-written.
    """
    subprocess.run(asked, check=True, stdout=subprocess.DEVNULL)
    assert out.read_bytes() == expected, f"{out} differs"
    left = [*out.parent.rglob(".*"), *(out.parent / f"{out.name}.job").rglob("part-*")]
    assert not left, left


def kills(
    model: str, scratch: Path, data: Path, expected: bytes, took_s: float, number: int
) -> str:
    """Kill the whole command at a random moment."""
    out = scratch / f"kill-{number}.jsonl"
    asked = command(model, data, out)
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL)
    moment = random.Random(number).uniform(0.2, took_s)
    time.sleep(moment)
    process.kill()
    code = process.wait()
    done = len(list((scratch / f"{out.name}.job" / "done").glob("*.json")))
    resumed(asked, out, expected)
    return f"killed after {moment:.1f} s (exit code {code}) with {done} parts done"


def disks(model: str, scratch: Path, data: Path, expected: bytes, _: float, number: int) -> str:
    """Let the disk be full at some point, then have room."""
    place = scratch / f"disk-{number}"
    place.mkdir()
    size = int(len(expected) * random.Random(number).uniform(0.05, 1.9))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        asked = command(model, data, place / "out.jsonl")
        full = subprocess.run(asked, check=False, capture_output=True, text=True)
        assert full.returncode == 2, full
        assert "No space left" in full.stderr, full.stderr
        assert not (place / "out.jsonl").exists()
        subprocess.run(["mount", "-o", "remount,size=1g", place], check=True)
        resumed(asked, place / "out.jsonl", expected)
    finally:
        subprocess.run(["umount", place], check=True)
    return f"full at {size:,} bytes: {full.stderr.splitlines()[-1]}"


def workers(
    model: str, scratch: Path, data: Path, expected: bytes, took_s: float, number: int
) -> str:
    """Kill one of two workers: the same command goes on."""
    out = scratch / f"worker-{number}.jsonl"
    asked = command(model, data, out, "--workers", "2", "--threads", "1")
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    while not children and process.poll() is None:
        time.sleep(0.05)
        children = [
            c
            for c in psutil.Process(process.pid).children(recursive=True)
            if "daft" in " ".join(c.cmdline())
        ]
    time.sleep(random.Random(number).uniform(0, took_s / 2))
    alive = [child for child in children if child.is_running()]
    for child in alive[:1]:
        child.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    done = f"killed {len(alive[:1])} of {len(alive)}, exit code {process.returncode}: {said.strip()[-150:]}"
    resumed(asked, out, expected)
    return done


def nodes(model: str, scratch: Path, data: Path, expected: bytes, _: float, number: int) -> str:
    """Remove one of three nodes of a Ray cluster in mid-job: the same command goes on."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        others = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        out = scratch / f"node-{number}.jsonl"
        asked = command(model, data, out, "--where", cluster.address, "--threads", "1")
        process = subprocess.Popen(
            asked, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        notes = scratch / f"{out.name}.job" / "done"
        while process.poll() is None and len(list(notes.glob("*.json"))) < 2:
            time.sleep(0.1)
        cluster.remove_node(others[0], allow_graceful=False)
        done = len(list(notes.glob("*.json")))
        _, said = process.communicate()
        lines = [line for line in said.splitlines() if line.startswith(("rerank", "Error"))]
        result = f"removed with {done} parts done, exit code {process.returncode}: {' '.join(lines)[:300]}"
        assert process.returncode == 0, said
        resumed(asked, out, expected)
        return result
    finally:
        cluster.shutdown()


def main() -> None:
    model, *chosen = sys.argv[1:]
    os.environ.update(RAY_AUTH_MODE="disabled", PYTHONWARNINGS="ignore")
    with tempfile.TemporaryDirectory(prefix="xopt-faults-") as folder:
        scratch = Path(folder)
        data = scratch / "candidates.parquet"
        candidates(data)
        start = time.monotonic()
        subprocess.run(
            command(model, data, scratch / "whole.jsonl"), check=True, stdout=subprocess.DEVNULL
        )
        took_s = time.monotonic() - start
        expected = (scratch / "whole.jsonl").read_bytes()
        print(f"undisturbed: {ROWS:,} pairs, {len(expected):,} bytes, {took_s:.1f} s", flush=True)
        for name in chosen or TIMES:
            for number in range(TIMES[name]):
                place = scratch / f"{name}-{number}"
                place.mkdir()
                said = globals()[name](model, place, data, expected, took_s, number)
                print(f"{name} {number + 1} of {TIMES[name]}: equal; {said}", flush=True)


if __name__ == "__main__":
    main()
