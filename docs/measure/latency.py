"""How long one query of 1, 10 and 100 candidates takes, against the peers: a table of
performance.md.

    python docs/measure/latency.py DIR [VARIANT/STRATEGY...]

All of them take half an hour. Each scorer answers the same queries one by one in a process of its
own, after a warm-up of some, on all cores. There are two rounds over all scorers. Candidates are
texts of the demo data, so that lengths are as they come.
"""

from __future__ import annotations

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
from xopt.runtime.bench.strategy import SMALL_BATCHES, ScorerSpec
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.variants import variants_on

SIZES = {1: 100, 10: 40, 100: 12}  # candidates, and queries of so many
ROUNDS = 2


def asked(candidates: int, queries: int) -> list[list[Pair]]:
    """Queries of the demo data with so many of its texts each."""
    rows = demo_candidates().rows
    texts, distinct = (
        itertools.cycle(row.text for row in rows),
        list(dict.fromkeys(row.query for row in rows)),
    )
    return [
        [(query, text) for text in itertools.islice(texts, candidates)]
        for query in distinct[:queries]
    ]


def one(folder: str, variant: str, strategy: str) -> None:
    """Print the seconds of each query, by candidates."""
    scorer = ScorerSpec(folder, variant, strategy, cores()).open()
    found = {}
    for candidates, queries in SIZES.items():
        lists, found[candidates] = asked(candidates, queries), []
        for pairs in lists[: max(3, len(lists) // 2)]:
            scorer.score(pairs)
        for pairs in lists:
            start = time.perf_counter()
            scorer.score(pairs)
            found[candidates].append(time.perf_counter() - start)
    print(json.dumps(found))


def main() -> None:
    """Print a table of medians and 95th percentiles, in milliseconds."""
    folder = ModelFolder.open(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        peers = make_peers(folder, demo_candidates(), detect_target(), Path(scratch) / "peers")
        cases = [
            (folder, v, "planned") for v in variants_on(folder, "cpu") if not v.startswith("torch")
        ]
        cases += [(peers, v, "planned") for v in peers.manifest.variants if v.startswith("ct2")]
        theirs = [
            (folder, "torch-fp32"),
            (folder, "torch-bf16"),
            *((peers, v) for v in peers.manifest.variants if v.startswith("st")),
        ]
        cases += [
            (home, v, strategy) for home, v in theirs for strategy in ("default", *SMALL_BATCHES)
        ]
        asked_for = sys.argv[2:]
        cases = [case for case in cases if not asked_for or f"{case[1]}/{case[2]}" in asked_for]
        times: dict[str, dict[str, list[float]]] = {}
        for _, (home, variant, strategy) in itertools.product(range(ROUNDS), cases):
            command = [sys.executable, __file__, "--one", str(home.path), variant, strategy]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            for candidates, seconds in json.loads(run.stdout.splitlines()[-1]).items():
                times.setdefault(f"{variant}/{strategy}", {}).setdefault(candidates, []).extend(
                    seconds
                )
    print(
        "| p50 / p95 in ms | "
        + " | ".join(f"{n} candidates" for n in SIZES)
        + " |\n|"
        + "---|" * (len(SIZES) + 1)
    )
    for case, found in times.items():
        cells = [
            "{:,.1f} / {:,.1f}".format(*np.percentile(np.multiply(found[str(n)], 1000), [50, 95]))
            for n in SIZES
        ]
        print(f"| {case} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        one(*sys.argv[2:])
    else:
        main()
