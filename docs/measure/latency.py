"""How long one query of 1, 10 and 100 candidates takes, against the peers.

    python docs/measure/latency.py DIR [VARIANT/STRATEGY...] [--json FILE]

Each scorer answers the same queries one by one, in a process of its own, after a warm-up, on all
cores. Two rounds go over all scorers. Candidates are texts of the demo data, so that lengths are
as they come. All scorers together take a quarter of an hour.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from xopt.optimize.peers import make_peers
from xopt.optimize.quantize import detect_target
from xopt.runtime.bench.strategy import ScorerSpec
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.variants import variants_on

# Of so many candidates so many queries.
QUERIES = {1: 100, 10: 40, 100: 12}
ROUNDS = 2
THEIR_STRATEGIES = ("default", "batch-1")


def queries_of(candidates: int, queries: int) -> list[list[Pair]]:
    """Return the pairs of so many queries of the demo data with so many of its texts each."""
    rows = demo_candidates().rows
    texts = itertools.cycle(row.text for row in rows)
    distinct = list(dict.fromkeys(row.query for row in rows))
    lists = []
    for query in distinct[:queries]:
        documents = itertools.islice(texts, candidates)
        lists.append([(query, document) for document in documents])
    return lists


def time_one(folder: str, variant: str, strategy: str) -> None:
    """Print the seconds of each query, by its number of candidates, as JSON."""
    scorer = ScorerSpec(folder, variant, strategy, cores()).open()
    seconds: dict[int, list[float]] = {}
    for candidates, queries in QUERIES.items():
        lists = queries_of(candidates, queries)
        seconds[candidates] = []
        for pairs in lists[: max(3, len(lists) // 2)]:
            scorer.score(pairs)
        for pairs in lists:
            start = time.perf_counter()
            scorer.score(pairs)
            seconds[candidates].append(time.perf_counter() - start)
    print(json.dumps(seconds))


def cases_of(folder: ModelFolder, peers: ModelFolder) -> list[tuple[ModelFolder, str, str]]:
    """Return the model folder, variant and strategy of each scorer."""
    ours = [name for name in variants_on(folder, "cpu") if not name.startswith("torch")]
    cases = [(folder, name, "planned") for name in ours]
    fed_by_plan = [name for name in peers.manifest.variants if name.startswith("ct2")]
    cases += [(peers, name, "planned") for name in fed_by_plan]
    theirs = [(folder, "torch-fp32"), (folder, "torch-bf16")]
    theirs += [(peers, name) for name in peers.manifest.variants if name.startswith("st")]
    for strategy in THEIR_STRATEGIES:
        cases += [(home, name, strategy) for home, name in theirs]
    return cases


def measured(
    cases: list[tuple[ModelFolder, str, str]],
) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each query, by case and number of candidates."""
    times: dict[str, dict[str, list[float]]] = {}
    for number in range(ROUNDS):
        for home, variant, strategy in cases:
            print(f"round {number + 1}: {variant}/{strategy}", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--one", str(home.path), variant, strategy]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found = times.setdefault(f"{variant}/{strategy}", {})
            for candidates, seconds in json.loads(run.stdout.splitlines()[-1]).items():
                found.setdefault(candidates, []).extend(seconds)
    return times


def percentiles(times: dict[str, dict[str, list[float]]]) -> list[dict[str, object]]:
    """Return the median and the 95th percentile in milliseconds of each case and number."""
    rows = []
    for case, by_candidates in times.items():
        for candidates, seconds in by_candidates.items():
            p50_ms, p95_ms = np.percentile(np.multiply(seconds, 1000), [50, 95])
            row = {"case": case, "candidates": int(candidates), "queries": len(seconds)}
            rows.append({**row, "p50_ms": float(p50_ms), "p95_ms": float(p95_ms)})
    return rows


def main() -> None:
    """Print medians and 95th percentiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("cases", nargs="*", help="such as onnx-int8/planned; all if none is named")
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    folder = ModelFolder.open(given.folder)
    with tempfile.TemporaryDirectory() as scratch:
        peers = make_peers(folder, demo_candidates(), detect_target(), Path(scratch) / "peers")
        cases = cases_of(folder, peers)
        if given.cases:
            cases = [case for case in cases if f"{case[1]}/{case[2]}" in given.cases]
        rows = percentiles(measured(cases))
    for row in rows:
        print("{case}, {candidates} candidates: {p50_ms:.1f} / {p95_ms:.1f} ms".format(**row))
    if given.json:
        result = {"threads": cores(), "rounds": ROUNDS, "rows": rows}
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        time_one(*sys.argv[2:])
    else:
        main()
