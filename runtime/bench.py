"""Bench: every variant inside a Daft batch UDF, each case in fresh processes, the cases interleaved."""

from __future__ import annotations

import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from xopt.runtime.agreement import Agreement, agreement
from xopt.runtime.candidates import Candidates
from xopt.runtime.encode import Encoder
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import check_device, cores
from xopt.runtime.monitor import TreeMonitor, Usage
from xopt.runtime.scorer import find_plan
from xopt.runtime.strategy import STRATEGIES, ScorerSpec, strategy_named

__all__ = ["BASELINE", "Bench", "Case", "Measured", "Round", "bench"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A variant under a strategy."""

    variant: str
    strategy: str

    def __str__(self) -> str:
        return f"{self.variant}/{self.strategy}"


BASELINE = Case("torch-fp32", "default")  # what a user of sentence-transformers runs


@dataclass(frozen=True)
class Round:
    """One run of a case in a fresh process, all pairs once, after a warm-up.

    wall_s is the time of all pairs. For strategies with worker processes, which live for one query,
    it starts with their first call; query_s holds their start-up and loading too.
    """

    wall_s: float
    query_s: float
    load_s: float
    calls_s: tuple[float, ...]
    processes: int
    usage: Usage


@dataclass(frozen=True)
class Measured:
    """A case over all rounds: medians, and the raw rounds. CPU in cores, latencies and loading in seconds."""

    case: Case
    pairs_per_s: float
    tokens_per_s: float
    ratio: float  # to the baseline, median over rounds of the ratio within a round
    p50_s: float
    p95_s: float
    load_s: float
    peak_bytes: int
    mean_cores: float
    peak_cores: float
    root_mean_cores: float
    agreement: Agreement | None  # with the baseline's scores of the same run; None for several labels
    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class Bench:
    """All cases of one interleaved run, and what they ran on."""

    data: str
    pairs: int
    tokens: int
    truncated: int
    threads: int
    cores: int
    device: str
    measured: tuple[Measured, ...]


def bench(
    folder: ModelFolder,
    candidates: Candidates,
    cases: Sequence[Case],
    *,
    threads: int | None = None,
    repeat: int = 3,
    device: str = "cpu",
    peers: ModelFolder | None = None,
) -> Bench:
    """Measure `cases` and the baseline on all candidates, `repeat` rounds, a fresh process a case and round.

    `threads` is what each scorer may use, all usable cores unless given. The variants of `peers`, the
    same model made by other tools, run as sentence-transformers' defaults have it. Raises BadInput where a
    variant or strategy is unknown or the device is not there, before anything is measured.
    """
    threads = threads or cores()
    others = list(peers.manifest.variants) if peers else []
    cases = list(dict.fromkeys([BASELINE, *cases, *(Case(variant, BASELINE.strategy) for variant in others)]))
    for case in cases:
        _home(case, folder, peers).variant(case.variant)
        strategy_named(case.strategy)
    check_device(device)
    tokens = Encoder(folder).encode(candidates.pairs)
    rounds: dict[Case, list[Round]] = {case: [] for case in cases}
    scores: dict[Case, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory(prefix="xopt-bench-") as scratch:
        pairs_file = Path(scratch) / "pairs.json"
        pairs_file.write_text(json.dumps(candidates.pairs), encoding="utf-8")
        for number, case in itertools.product(range(repeat), cases):
            log.info("round %d of %d: %s", number + 1, repeat, case)
            measured, scores[case] = _run(_home(case, folder, peers), case, pairs_file, threads, device)
            rounds[case].append(measured)
    totals = len(candidates.rows), int(tokens.lengths.sum())
    judged = {case: _judge(folder, candidates, scores[BASELINE], scores[case]) for case in cases}
    summaries = tuple(_summarise(case, rounds[case], rounds[BASELINE], *totals, judged[case]) for case in cases)
    return Bench(candidates.name, *totals, tokens.truncated, threads, cores(), device, summaries)


def _home(case: Case, folder: ModelFolder, peers: ModelFolder | None) -> ModelFolder:
    return peers if peers and case.variant in peers.manifest.variants else folder


def _judge(folder: ModelFolder, candidates: Candidates, expected: Any, scores: Any) -> Agreement | None:
    return agreement(candidates, expected, scores) if folder.manifest.labels == 1 else None


def _summarise(
    case: Case, rounds: list[Round], baseline: list[Round], pairs: int, tokens: int, agreed: Agreement | None
) -> Measured:
    walls = [r.wall_s for r in rounds]
    calls = [call for r in rounds for call in r.calls_s]
    return Measured(
        case=case,
        pairs_per_s=pairs / statistics.median(walls),
        tokens_per_s=tokens / statistics.median(walls),
        ratio=statistics.median(b.wall_s / wall for b, wall in zip(baseline, walls, strict=True)),
        p50_s=float(np.percentile(calls, 50)),
        p95_s=float(np.percentile(calls, 95)),
        load_s=statistics.median(r.load_s for r in rounds),
        peak_bytes=max(r.usage.peak_bytes for r in rounds),
        mean_cores=statistics.median(r.usage.mean_cores for r in rounds),
        peak_cores=max(r.usage.peak_cores for r in rounds),
        root_mean_cores=statistics.median(r.usage.root_mean_cores for r in rounds),
        agreement=agreed,
        rounds=tuple(rounds),
    )


def _run(
    folder: ModelFolder, case: Case, pairs_file: Path, threads: int, device: str
) -> tuple[Round, NDArray[np.float32]]:
    plan = None
    if STRATEGIES[case.strategy].batch_size is None:
        plan = find_plan(folder, folder.variant(case.variant), threads)
    spec = ScorerSpec(str(folder.path.resolve()), case.variant, case.strategy, threads, device, plan)
    with _worker(threads) as worker, TreeMonitor(worker.process.pid) as monitor:
        worker.say({"spec": asdict(spec), "pairs_file": str(pairs_file)})
        worker.hear("ready")
        worker.say({})
        done = worker.hear("done")
    calls = done["calls"]
    start_s, end_s = done["start_s"], done["end_s"]
    query_s = end_s - start_s
    if STRATEGIES[case.strategy].workers is not None:
        start_s, end_s = min(start for _, start, _, _ in calls), max(end for _, _, end, _ in calls)
    measured = Round(
        wall_s=end_s - start_s,
        query_s=query_s,
        load_s=done["load_s"],
        calls_s=tuple(end - start for _, start, end, _ in calls),
        processes=len({pid for pid, *_ in calls}),
        usage=monitor.usage(start_s, end_s),
    )
    return measured, np.array(done["scores"], np.float32)


@dataclass(frozen=True)
class _Worker:
    """A bench worker and its end of the conversation."""

    process: subprocess.Popen[str]
    errors: Path

    def say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def hear(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else {"event": "died"}
        if message["event"] == "bad_input":
            raise BadInput(message["message"])
        if message["event"] != event:
            tail = "\n".join(self.errors.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
            raise RuntimeError(f"the bench's worker stopped before it was {event}:\n{tail}")
        return message


@contextmanager
def _worker(threads: int) -> Iterator[_Worker]:
    quiet = {"DAFT_PROGRESS_BAR": "0", "DO_NOT_TRACK": "1", "RAYON_NUM_THREADS": str(threads)}
    with tempfile.NamedTemporaryFile("w", prefix="xopt-bench-", suffix=".err") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "xopt.runtime.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **quiet},
        )
        try:
            yield _Worker(process, Path(errors.name))
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the worker and all that it started."""
    try:
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        tree = []
    for member in tree:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
