"""What is left to gain or to lose: a plan that tune missed, Daft's share, memory, opening, peers'
best batch, a mask.

    python docs/measure/costs.py DIR [opening | sweep | batches | attention | in_daft ...]

DIR is a model folder with onnx-int8. All parts unless some are named. The tables of
docs/performance.md; rounds are interleaved, ratios are medians.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from xopt.optimize.graph.attention import unfused
from xopt.optimize.graph.structure import write_graph
from xopt.optimize.peers import make_peers
from xopt.optimize.quantize import detect_target
from xopt.optimize.tune import plans_for, tune
from xopt.runtime.bench.in_daft import pairs_frame
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.data.agreement import agreement
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.frames.rerank import rerank
from xopt.runtime.machine import cores
from xopt.runtime.scoring.scorer import open_scorer
from xopt.runtime.scoring.variants import REFERENCE

FRESH = """
import sys, time
def peak():  # in kB; getrusage would count the parent's too
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
start = time.perf_counter()
from xopt.runtime import open_scorer
from xopt.runtime.folder import Plan
scorer = open_scorer(sys.argv[1], "onnx-int8", plan=Plan(int(sys.argv[2]), 1, 512))
opened = time.perf_counter() - start
held = peak()
from xopt.runtime.data.candidates import demo_candidates
scorer.score(demo_candidates().pairs[:400])
scored = peak()
assert "torch" not in sys.modules
print(f"{opened:.2f} s | {held * 1.024e-3:.0f} MB | {scored * 1.024e-3:.0f} MB")
"""


def main(folder: ModelFolder, named: list[str]) -> None:
    parts = {part.__name__: part for part in (opening, sweep, batches, attention, in_daft)}
    for name in named or parts:
        parts[name](folder)


def opening(folder: ModelFolder) -> None:
    print(
        "| callers, in a fresh process without torch | opened after | peak by then | peak, 400 pairs scored |"
    )
    print("|---|---|---|---|")
    for callers in (1, 2):
        command = [sys.executable, "-c", FRESH, str(folder.path), str(callers)]
        print(
            f"| {callers} | {subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()} |"
        )


def sweep(folder: ModelFolder, pairs: int = 200, rounds: int = 5) -> None:
    docs = demo_candidates()
    few = docs.pairs[:: len(docs.pairs) // pairs]
    print(
        "\n| variant | tune took | its plan | share of the best plan's speed in a sweep |\n|---|---|---|---|"
    )
    for variant in ("onnx-fp32", "onnx-int8"):
        start = time.perf_counter()
        tuned, (tuning,) = tune(folder, [variant], docs)
        took = time.perf_counter() - start
        by_threads = {plan.threads: plan for plan in plans_for(cores())}
        scorers = {
            threads: open_scorer(tuned.path, variant, plan=plan)
            for threads, plan in by_threads.items()
        }
        times = interleaved(
            {
                plan: (scorers[plan.threads].with_plan(plan).score, few)
                for plan in plans_for(cores())
            },
            rounds,
        )
        share = min(times.values()) / times[tuning.best]
        best = tuning.best
        print(
            f"| {variant} | {took:.0f} s | {best.callers} x {best.threads}, {best.tokens} tokens | {share:.3f} |"
        )


def batches(folder: ModelFolder, queries: int = 8, rounds: int = 5) -> None:
    docs = demo_candidates(queries)
    reference = ReferenceScorer(folder, folder.variant(REFERENCE), cores())
    with tempfile.TemporaryDirectory() as scratch:
        peers = make_peers(folder, docs, detect_target(), Path(scratch) / "peers")
        scorers = {
            "torch-fp32, batches of 32": reference,
            "onnx-int8": open_scorer(folder.path, "onnx-int8"),
        }
        for size in (32, 8):
            for name in ("st-onnx", "st-onnx-qint8"):
                scorers[f"{name}, batches of {size}"] = ReferenceScorer(
                    peers, peers.variant(name), cores(), size
                )
        expected = reference.score(docs.pairs)
        times = interleaved(
            {name: (scorer.score, docs.pairs) for name, scorer in scorers.items()}, rounds
        )
        print(f"\n| {len(docs.pairs)} pairs | speed | tau-b | top-10 |\n|---|---|---|---|")
        for name, seconds in times.items():
            agreed = agreement(docs, expected, scorers[name].score(docs.pairs))
            ratio = times["torch-fp32, batches of 32"] / seconds
            print(f"| {name} | {ratio:.2f} x | {agreed.tau:.3f} | {agreed.top10:.3f} |")


def attention(folder: ModelFolder, queries: int = 8, rounds: int = 11) -> None:
    docs, plan = demo_candidates(queries), Plan(cores(), 1, 512)
    with tempfile.TemporaryDirectory() as scratch:
        masked = ModelFolder.open(shutil.copytree(folder.path, Path(scratch) / "masked"))
        scorers = {}
        for variant in map(folder.variant, ("onnx-fp32", "onnx-int8")):
            write_graph(unfused(onnx.load(folder.path / variant.file)), masked.path / variant.file)
            masked = masked.with_variant(variant)
            for name, home, step in (
                ("masked, padded", masked, 0),
                ("masked, equal lengths", masked, 1),
                ("one operator, equal lengths", folder, 1),
            ):
                scorer = scorers[variant.name, name] = open_scorer(home, variant.name, plan=plan)
                scorer.backend.step = step
        times = interleaved(
            {key: (scorer.score, docs.pairs) for key, scorer in scorers.items()}, rounds
        )
        expected = scorers["onnx-fp32", "masked, padded"].score(docs.pairs)
        print(
            f"\n| {len(docs.pairs)} pairs | attention | pairs/s | speed | tau-b | top-10 |\n|---|---|---|---|---|---|"
        )
        for (variant, name), seconds in times.items():
            agreed = agreement(docs, expected, scorers[variant, name].score(docs.pairs))
            ratio, rate = times[variant, "masked, padded"] / seconds, len(docs.pairs) / seconds
            print(
                f"| {variant} | {name} | {rate:.1f} | {ratio:.2f} x | {agreed.tau:.3f} | {agreed.top10:.3f} |"
            )


def in_daft(folder: ModelFolder, queries: int = 200, rounds: int = 3) -> None:
    pairs = demo_candidates(queries).pairs
    bare, frame = open_scorer(folder.path, "onnx-int8"), pairs_frame(pairs)

    def daft(_: object) -> None:
        rerank(frame, folder.path, "onnx-int8").to_pydict()

    times = interleaved({"bare": (bare.score, pairs), "in Daft": (daft, pairs)}, rounds)
    share = times["bare"] / times["in Daft"]
    print(
        f"\nonnx-int8, {len(pairs):,} pairs: in Daft, opening included, {share:.3f} of the bare scorer's speed"
    )


def interleaved(
    runs: dict[Any, tuple[Callable[..., object], object]], rounds: int
) -> dict[Any, float]:
    """Median seconds of each run, in turns, after a round that does not count."""
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for number in range(rounds + 1):
        for key, (run, argument) in runs.items():
            start = time.perf_counter()
            run(argument)
            if number:
                times[key].append(time.perf_counter() - start)
    return {key: statistics.median(taken) for key, taken in times.items()}


if __name__ == "__main__":
    main(ModelFolder.open(sys.argv[1]), sys.argv[2:])
