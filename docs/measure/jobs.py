"""What a job over files costs beside its scorer, and whether its memory stays flat.

    python docs/measure/jobs.py rate DIR
    python docs/measure/jobs.py memory DIR ROWS

`rate` has the job and the bare scorer on the same pairs of the demo data, in turns. `memory` has
so many short pairs on disk; a tiny model makes it quick.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from xopt.runtime import open_scorer, rerank_files
from xopt.runtime.data.candidates import demo_candidates

XOPT = Path(sys.executable).with_name("xopt")
ROUNDS, QUERIES = 5, 240
FILES, DEPTH, WORDS = (
    10,
    20,
    ["data", "search", "index", "shard", "query", "rank", "the", "of", "model", "file"],
)


def rate(folder: str, scratch: Path) -> None:
    """Pairs a second of the job, its reading, ranking and writing included, and of the scorer
    alone.
    """
    rows = demo_candidates(queries=QUERIES).rows
    table = [
        {"query_id": r.query_id, "query": r.query, "doc_id": r.doc_id, "text": r.text} for r in rows
    ]
    pq.write_table(pa.Table.from_pylist(table), scratch / "demo.parquet")
    scorer, pairs = open_scorer(folder, "onnx-int8"), [(row.query, row.text) for row in rows]
    scorer.score(pairs[:500])
    ratios = []
    for number in range(ROUNDS):
        start = time.monotonic()
        expected = scorer.score(pairs)
        alone = len(pairs) / (time.monotonic() - start)
        made = rerank_files(
            folder, [scratch / "demo.parquet"], scratch / f"{number}.parquet", variant="onnx-int8"
        )
        job = made.counts.rows / made.counts.seconds
        found = pq.read_table(scratch / f"{number}.parquet").column("score").to_numpy()
        ratios.append(job / alone)
        differ = np.abs(found - expected).max()
        print(
            f"scorer {alone:.0f}, job {job:.0f} pairs/s ({made.seconds - made.counts.seconds:.2f} s beside its parts)"
        )
    print(
        f"job / scorer, median of {ROUNDS}: {np.median(ratios):.3f}; scores differ by {differ:.1e} at most"
    )


def memory(folder: str, scratch: Path, rows: int) -> None:
    """The peak of the memory of the whole command, by quarters of its time."""
    draw = np.random.default_rng(0)
    for file in range(FILES):
        first, last = (rows * at // FILES for at in (file, file + 1))
        numbers = np.arange(first, last)
        words = np.array(WORDS)[draw.integers(0, len(WORDS), (last - first, 6))]
        queries = pa.array([f"{WORDS[q % 10]} {WORDS[q // 10 % 10]} {q}" for q in numbers // DEPTH])
        table = {
            "query_id": pa.array(numbers // DEPTH),
            "query": queries,
            "doc_id": pa.array(numbers),
            "text": pa.array([" ".join(row) for row in words]),
        }
        pq.write_table(pa.table(table), scratch / f"{file:02d}.parquet")
    asked = [XOPT, "rerank", folder, *sorted(scratch.glob("*.parquet")), "-o", scratch / "out"]
    start, peaks = time.monotonic(), []
    process = subprocess.Popen(list(map(str, asked)))
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            held = sum(p.memory_info().rss for p in [tree, *tree.children(recursive=True)])
            peaks.append((time.monotonic() - start, held))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    took_s = time.monotonic() - start
    quarters = [[held for at, held in peaks if q <= 4 * at / took_s < q + 1] for q in range(4)]
    print(f"{rows:,} pairs in {took_s:.0f} s, exit code {process.wait()}")
    print("peak by quarter, MiB:", [round(max(quarter) / 2**20) for quarter in quarters])
    made = [
        pq.read_table(file, columns=["doc_id", "score"])
        for file in sorted((scratch / "out").glob("*.parquet"))
    ]
    whole = pa.concat_tables(made)
    print(
        f"rows out: {len(whole):,}, in their order: {np.array_equal(whole['doc_id'].to_numpy(), np.arange(rows))}"
    )
    start = time.monotonic()
    subprocess.run(list(map(str, asked)), check=True)
    print(f"again: {time.monotonic() - start:.1f} s")


def main() -> None:
    what, folder, *more = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="xopt-jobs-") as scratch:
        if what == "rate":
            rate(folder, Path(scratch))
        else:
            memory(folder, Path(scratch), int(more[0]))


if __name__ == "__main__":
    main()
