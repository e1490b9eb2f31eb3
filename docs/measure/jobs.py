"""What a job over files costs beside its scorer, and whether its memory stays flat.

    python docs/measure/jobs.py rate DIR [--json FILE]
    python docs/measure/jobs.py memory DIR ROWS [--json FILE]

`rate` has the job and the bare scorer on the same pairs of the demo data, in turns. `memory` has
so many short pairs on disk; a tiny model makes it quick.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from xopt.runtime import open_scorer, rerank_files
from xopt.runtime.data.candidates import demo_candidates

XOPT = Path(sys.executable).with_name("xopt")
VARIANT = "onnx-int8"
ROUNDS = 5
QUERIES = 240
FILES = 10
DEPTH = 20
WORDS = ["data", "search", "index", "shard", "query", "rank", "the", "of", "model", "file"]


def rate(folder: str, scratch: Path) -> dict[str, Any]:
    """Return the pairs per second of the job, with its reading, ranking and writing, and of the
    scorer alone.
    """
    rows = demo_candidates(queries=QUERIES).rows
    table = [
        {"query_id": r.query_id, "query": r.query, "doc_id": r.doc_id, "text": r.text} for r in rows
    ]
    source = scratch / "demo.parquet"
    pq.write_table(pa.Table.from_pylist(table), source)
    pairs = [(row.query, row.text) for row in rows]
    scorer = open_scorer(folder, VARIANT)
    scorer.score(pairs[:500])
    rounds = []
    for number in range(ROUNDS):
        start = time.monotonic()
        expected = scorer.score(pairs)
        alone = len(pairs) / (time.monotonic() - start)
        out = scratch / f"{number}.parquet"
        made = rerank_files(folder, [source], out, variant=VARIANT)
        job = made.counts.rows / made.counts.seconds
        found = pq.read_table(out).column("score").to_numpy()
        found_round = {
            "scorer_pairs_per_s": alone,
            "job_pairs_per_s": job,
            "ratio": job / alone,
            "beside_parts_s": made.seconds - made.counts.seconds,
            "largest_difference": float(np.abs(found - expected).max()),
        }
        print(found_round, flush=True)
        rounds.append(found_round)
    return {
        "variant": VARIANT,
        "pairs": len(pairs),
        "ratio": float(np.median([each["ratio"] for each in rounds])),
        "rounds": rounds,
    }


def write_candidates(folder: Path, rows: int) -> None:
    """Write so many short pairs into Parquet files."""
    draw = np.random.default_rng(0)
    for file in range(FILES):
        numbers = np.arange(rows * file // FILES, rows * (file + 1) // FILES)
        words = np.array(WORDS)[draw.integers(0, len(WORDS), (len(numbers), 6))]
        queries = [f"{WORDS[q % 10]} {WORDS[q // 10 % 10]} {q}" for q in numbers // DEPTH]
        table = {
            "query_id": pa.array(numbers // DEPTH),
            "query": pa.array(queries),
            "doc_id": pa.array(numbers),
            "text": pa.array([" ".join(row) for row in words]),
        }
        pq.write_table(pa.table(table), folder / f"{file:02d}.parquet")


def watched(command: list[str]) -> tuple[float, list[float]]:
    """Run a command, and return its seconds and the peak of its memory by quarters, in MiB."""
    start = time.monotonic()
    samples = []
    process = subprocess.Popen(command)
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            held = sum(p.memory_info().rss for p in [tree, *tree.children(recursive=True)])
        except psutil.NoSuchProcess:
            break
        samples.append((time.monotonic() - start, held / 2**20))
        time.sleep(0.2)
    if process.wait():
        sys.exit(f"exit code {process.returncode}")
    took_s = time.monotonic() - start
    peaks = []
    for quarter in range(4):
        within = [held for at, held in samples if quarter <= 4 * at / took_s < quarter + 1]
        peaks.append(max(within))
    return took_s, peaks


def memory(folder: str, scratch: Path, rows: int) -> dict[str, Any]:
    """Return the time and the memory of the whole command, and of the same command again."""
    write_candidates(scratch, rows)
    sources = sorted(str(file) for file in scratch.glob("*.parquet"))
    out = scratch / "out"
    command = [str(XOPT), "-q", "rerank", folder, *sources, "-o", str(out)]
    took_s, peaks_mib = watched(command)
    ids = [
        pq.read_table(file, columns=["doc_id"])["doc_id"] for file in sorted(out.glob("*.parquet"))
    ]
    whole = np.concatenate([each.to_numpy() for each in ids])
    if not np.array_equal(whole, np.arange(rows)):
        sys.exit("the rows that came out are not those that went in, or in another order")
    again_s, _ = watched(command)
    found = {"rows": rows, "seconds": took_s, "peaks_mib": peaks_mib, "again_s": again_s}
    print(found)
    return found


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("rate", "memory"))
    parser.add_argument("folder")
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xopt-jobs-") as scratch:
        if given.what == "rate":
            found = rate(given.folder, Path(scratch))
        else:
            found = memory(given.folder, Path(scratch), given.rows)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
