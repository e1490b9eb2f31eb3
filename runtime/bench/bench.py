"""Bench: every variant inside a Daft batch UDF, each case in fresh processes, the cases
interleaved.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.bench.ceilings import Ceilings, measure_ceilings
from xopt.runtime.bench.explain import Explained, ModelShape, Observed, explain
from xopt.runtime.bench.monitor import TreeMonitor, Usage
from xopt.runtime.bench.strategy import STRATEGIES, ScorerSpec, strategy_named
from xopt.runtime.bench.worker import started
from xopt.runtime.cascade.cascade import Cascade
from xopt.runtime.cascade.loss import Cascaded
from xopt.runtime.data.agreement import Agreement, agreement
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores, cpu_name, machine_name, memory_bytes, versions_here
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.profile import profile
from xopt.runtime.scoring.scorer import find_plan
from xopt.runtime.scoring.stages import Call, Stages
from xopt.runtime.scoring.variants import check_variant

__all__ = ["BASELINE", "Bench", "Case", "Measured", "Round", "bench"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A variant under a strategy."""

    variant: str
    strategy: str

    def __str__(self) -> str:
        return f"{self.variant}/{self.strategy}"


PROFILED_PAIRS = 32
BASELINE = Case("torch-fp32", "default")  # what a user of sentence-transformers runs


@dataclass(frozen=True)
class Round:
    """One run of a case in a fresh process, all pairs once, after a warm-up.

    wall_s is the time of all pairs. For strategies with worker processes, which live for one
    query, it starts with their first call; query_s holds their start-up and loading too.
    within_calls_s is the part of wall_s in which a call ran. The switches are of the whole query.
    """

    wall_s: float
    query_s: float
    load_s: float
    calls_s: tuple[float, ...]
    within_calls_s: float
    processes: int
    stages: Stages
    voluntary_switches: int
    involuntary_switches: int
    usage: Usage


@dataclass(frozen=True)
class Measured:
    """A case over all rounds: medians, and the raw rounds. CPU in cores, latencies and loading in
    seconds.
    """

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
    # with the baseline's scores of the same run; None where no label ranks
    agreement: Agreement | None
    cascaded: Cascaded | None  # of the strategy "cascade"
    explained: Explained | None  # of the round with the median time; None on a GPU
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
    machine: str
    memory_bytes: int
    versions: dict[str, str]
    ceilings: Ceilings | None  # None on a GPU
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
    profiled: bool = False,
    once: Sequence[Case] = (),
) -> Bench:
    """Measure `cases` and the baseline on all candidates, `repeat` rounds, a fresh process a case
    and round.

    `threads` is what each scorer may use, all usable cores unless given. Cases may name variants
    of `peers`, the same model made by other tools. `profiled` opens each planned variant once
    more, to see where its forwards' time goes. Those of the cases that are `once` too run in the
    first round alone. Raises BadInput where a variant or strategy is unknown or the device is not
    there, before anything is measured.
    """
    threads = threads or cores()
    cases = list(dict.fromkeys([BASELINE, *cases]))
    for case in cases:
        if strategy_named(case.strategy).by_query:
            _check_cascade(case, folder, candidates)
        check_variant(_home(case, folder, peers).variant(case.variant), device)
    tokens = Encoder(folder).encode(candidates.pairs)
    ceilings = measure_ceilings(threads) if device == "cpu" else None
    rounds: dict[Case, list[Round]] = {case: [] for case in cases}
    scores: dict[Case, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory(prefix="xopt-bench-") as scratch:
        pairs_file = Path(scratch) / "pairs.json"
        ids = [row.query_id for row in candidates.rows]
        lists = {
            "pairs": candidates.pairs,
            "query_ids": ids,
            "first_scores": candidates.first_scores,
        }
        pairs_file.write_text(json.dumps(lists), encoding="utf-8")
        for number, case in itertools.product(range(repeat), cases):
            if number and case in once:
                continue
            log.info("round %d of %d: %s", number + 1, repeat, case)
            measured, scores[case] = _run(
                _home(case, folder, peers), case, pairs_file, threads, device
            )
            rounds[case].append(measured)
    totals = len(candidates.rows), int(tokens.lengths.sum())
    summaries = []
    for case in cases:
        agreed, cascaded, rank = None, None, folder.manifest.ranking
        unsound = int((~np.isfinite(scores[case])).sum())
        if STRATEGIES[case.strategy].by_query:
            cascaded = Cascaded.of(
                Cascade.of(folder), candidates, rank(scores[BASELINE]), scores[case]
            )
            # what was not scored comes last
            scores[case], unsound = np.nan_to_num(scores[case], nan=-np.inf), 0
        if unsound:
            log.warning("%s: %d scores are not finite, so no agreement is shown", case, unsound)
        elif folder.manifest.ranks and np.isfinite(scores[BASELINE]).all():
            agreed = agreement(candidates, rank(scores[BASELINE]), rank(scores[case]))
        sample, home = (
            candidates.pairs[:PROFILED_PAIRS] if profiled else [],
            _home(case, folder, peers),
        )
        explained = (
            _explain(home, case, rounds[case], threads, ceilings, sample) if ceilings else None
        )
        summaries.append(
            _summarise(case, rounds[case], rounds[BASELINE], *totals, agreed, cascaded, explained)
        )
    return Bench(
        candidates.name,
        *totals,
        tokens.truncated,
        threads,
        cores(),
        device,
        cpu_name() if device == "cpu" else machine_name(device),
        memory_bytes(),
        versions_here(),
        ceilings,
        tuple(summaries),
    )


def _check_cascade(case: Case, folder: ModelFolder, candidates: Candidates) -> None:
    own = Cascade.of(folder)
    if case.variant != own.variant:
        raise BadInput(f"{case}: the cascade of {folder.path} scores with {own.variant}")
    if own.order.with_score and candidates.first_scores is None:
        raise BadInput(
            f"{case}: the cascade of {folder.path} goes by a column of first-stage scores, as "
            f"{own.certificate.column!r} was, and {candidates.name} was read without one"
        )


def _home(case: Case, folder: ModelFolder, peers: ModelFolder | None) -> ModelFolder:
    return peers if peers and case.variant in peers.manifest.variants else folder


def _summarise(
    case: Case,
    rounds: list[Round],
    baseline: list[Round],
    pairs: int,
    tokens: int,
    agreed: Agreement | None,
    cascaded: Cascaded | None,
    explained: Explained | None,
) -> Measured:
    walls = [r.wall_s for r in rounds]
    calls = [call for r in rounds for call in r.calls_s]
    return Measured(
        case=case,
        pairs_per_s=pairs / statistics.median(walls),
        tokens_per_s=tokens / statistics.median(walls),
        ratio=statistics.median(
            b.wall_s / wall for b, wall in zip(baseline[: len(walls)], walls, strict=True)
        ),
        p50_s=float(np.percentile(calls, 50)),
        p95_s=float(np.percentile(calls, 95)),
        load_s=statistics.median(r.load_s for r in rounds),
        peak_bytes=max(r.usage.peak_bytes for r in rounds),
        mean_cores=statistics.median(r.usage.mean_cores for r in rounds),
        peak_cores=max(r.usage.peak_cores for r in rounds),
        root_mean_cores=statistics.median(r.usage.root_mean_cores for r in rounds),
        agreement=agreed,
        cascaded=cascaded,
        explained=explained,
        rounds=tuple(rounds),
    )


def _explain(
    folder: ModelFolder,
    case: Case,
    rounds: list[Round],
    threads: int,
    ceilings: Ceilings,
    sample: Sequence[Pair],
) -> Explained:
    median = sorted(rounds, key=lambda r: r.wall_s)[len(rounds) // 2]
    variant, strategy = folder.variant(case.variant), STRATEGIES[case.strategy]
    reopened = strategy.workers is not None
    observed = Observed(
        variant=variant,
        planned=strategy.batch_size is None,
        start_up_s=median.query_s - median.wall_s if reopened else median.load_s,
        reopened=reopened,
        window_s=median.wall_s,
        calls_s=median.within_calls_s,
        calls_sum_s=sum(median.calls_s),
        stages=median.stages,
        processes=median.processes,
        threads=threads,
        cores=cores(),
        mean_cores=median.usage.mean_cores,
    )
    seen = None
    if sample and case.strategy == "planned":
        seen = profile(folder, case.variant, find_plan(folder, variant, threads), sample)
    return explain(observed, ModelShape.of(folder, variant), ceilings, seen)


def _run(
    folder: ModelFolder, case: Case, pairs_file: Path, threads: int, device: str
) -> tuple[Round, NDArray[np.float32]]:
    plan = None
    if STRATEGIES[case.strategy].batch_size is None:
        plan = find_plan(folder, folder.variant(case.variant), threads, device)
    spec = ScorerSpec(
        str(folder.path.resolve()),
        case.variant,
        case.strategy,
        threads,
        device,
        plan,
        folder.trusted,
    )
    with started(threads) as worker, TreeMonitor(worker.pid) as monitor:
        worker.open({"spec": asdict(spec), "pairs_file": str(pairs_file)})
        done = worker.run()
    calls = [Call.of(call) for call in done["calls"]]
    start_s, end_s = done["start_s"], done["end_s"]
    query_s = end_s - start_s
    if STRATEGIES[case.strategy].workers is not None:
        start_s, end_s = min(call.start_s for call in calls), max(call.end_s for call in calls)
    measured = Round(
        wall_s=end_s - start_s,
        query_s=query_s,
        load_s=done["load_s"],
        calls_s=tuple(call.end_s - call.start_s for call in calls),
        within_calls_s=_covered([(call.start_s, call.end_s) for call in calls]),
        processes=len({call.pid for call in calls}),
        stages=functools.reduce(Stages.plus, (call.stages for call in calls)),
        voluntary_switches=done["switches"][0],
        involuntary_switches=done["switches"][1],
        usage=monitor.usage(start_s, end_s),
    )
    return measured, np.array(done["scores"], np.float32)


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """How long at least one of the spans lasts."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
