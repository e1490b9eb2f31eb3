"""Bench: variants inside a Daft batch UDF, each case in fresh processes, the cases interleaved."""

from __future__ import annotations

import functools
import json
import logging
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from xopt.runtime.bench.ceilings import Ceilings, measure_ceilings
from xopt.runtime.bench.explain import Explained, Observed, explain
from xopt.runtime.bench.monitor import TreeMonitor, Usage
from xopt.runtime.bench.shape import ModelShape
from xopt.runtime.bench.strategy import STRATEGIES, ScorerSpec, strategy_named
from xopt.runtime.bench.worker import started
from xopt.runtime.cascade.cascade import Cascade
from xopt.runtime.cascade.loss import CascadeLosses
from xopt.runtime.data.agreement import Agreement, agreement
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores, cpu_name, machine_name, versions_here
from xopt.runtime.progress import progress
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.profile import profile
from xopt.runtime.scoring.scorer import find_plan
from xopt.runtime.scoring.stages import Call, Stages
from xopt.runtime.scoring.variants import check_variant

__all__ = ["BASELINE", "Bench", "Case", "Measured", "Round", "bench"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """A variant under a strategy: what one row of the bench measures.

    `Case("onnx-int8", "planned")` is onnx-int8 by xopt's plan.
    """

    variant: str
    strategy: str

    def __str__(self) -> str:
        return f"{self.variant}/{self.strategy}"


PROFILED_PAIRS = 32
BASELINE = Case("torch-fp32", "default")  # what a user of sentence-transformers runs


@dataclass(frozen=True)
class Round:
    """One run of a case in a fresh process: all pairs once, after a warm-up.

    wall_s: the time of all pairs; with worker processes, which live for one query, from the first
    call on. query_s: that of the whole query, as are the context switches.
    within_calls_s: the part of wall_s in which a call ran.
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
    """A case over all rounds: medians, and the raw rounds. CPU in cores, times in seconds.

    ratio: to the baseline's speed, the median over rounds of the ratio within a round.
    agreement: with the baseline's scores of the same run; None where no label ranks.
    cascaded: what the strategy "cascade" lost; None of others.
    explained: the round with the median time; None on a GPU.
    """

    case: Case
    pairs_per_s: float
    tokens_per_s: float
    ratio: float
    p50_s: float
    p95_s: float
    load_s: float
    peak_bytes: int
    mean_cores: float
    peak_cores: float
    root_mean_cores: float
    agreement: Agreement | None
    cascaded: CascadeLosses | None
    explained: Explained | None
    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class Bench:
    """All cases of one interleaved run, and what they ran on; no ceilings on a GPU."""

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
    ceilings: Ceilings | None
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
    """Measure `cases` and the baseline on all candidates in `repeat` interleaved rounds.

    - `threads`: what a scorer may use, by default all cores.
    - `peers`: the same model made by other tools, whose variants `cases` may name too.
    - `profiled`: also profile the forwards of planned variants.
    - `once`: those of `cases` that run in the first round only.

    Each case of each round has a fresh process.

    Raises BadInput before anything is measured, where a variant or a strategy is unknown or the
    device is missing.
    """
    threads = threads or cores()
    folders = _folders([BASELINE, *cases], folder, peers)
    for case, case_folder in folders.items():
        if strategy_named(case.strategy).by_query:
            _check_cascade(case, folder, candidates)
        check_variant(case_folder.variant(case.variant), device)
    pairs = candidates.pairs
    tokens = Encoder(folder).encode(pairs)
    token_count = int(tokens.lengths.sum())
    ceilings = _ceilings(device, threads)
    rounds, logits = _run_rounds(folders, candidates, threads, repeat, device, once)
    measured = []
    for case, case_folder in folders.items():
        agreed, cascaded = _compare(folder, candidates, case, logits)
        explained = None
        if ceilings is not None:
            sample = pairs[:PROFILED_PAIRS] if profiled else []
            explained = _explain(case_folder, case, rounds[case], threads, ceilings, sample)
        measured.append(
            _summarise(case, rounds, len(pairs), token_count, agreed, cascaded, explained)
        )
    return Bench(
        data=candidates.name,
        pairs=len(pairs),
        tokens=token_count,
        truncated=tokens.truncated,
        threads=threads,
        cores=cores(),
        device=device,
        machine=cpu_name() if device == "cpu" else machine_name(device),
        memory_bytes=psutil.virtual_memory().total,
        versions=versions_here(),
        ceilings=ceilings,
        measured=tuple(measured),
    )


def _ceilings(device: str, threads: int) -> Ceilings | None:
    """Measure what this machine can do at most; nothing on a GPU."""
    if device != "cpu":
        return None
    with progress("bench, measuring what this machine can do"):
        return measure_ceilings(threads)


def _folders(
    cases: Sequence[Case], folder: ModelFolder, peers: ModelFolder | None
) -> dict[Case, ModelFolder]:
    """Return the folder that holds each case's variant."""
    made_by_peers = peers.manifest.variants if peers else {}
    return {case: peers if peers and case.variant in made_by_peers else folder for case in cases}


def _check_cascade(case: Case, folder: ModelFolder, candidates: Candidates) -> None:
    cascade = Cascade.of(folder)
    if case.variant != cascade.variant:
        raise BadInput(
            f"{case}: the cascade of {folder.path} scores with {cascade.variant}; "
            f"give `variant={cascade.variant}`"
        )
    if cascade.order.with_score and candidates.first_scores is None:
        raise BadInput(
            f"{case}: the cascade of {folder.path} goes by a column of first-stage scores, as "
            f"{cascade.certificate.column!r} was; give data that has it, not {candidates.name}"
        )


def _run_rounds(
    folders: dict[Case, ModelFolder],
    candidates: Candidates,
    threads: int,
    repeat: int,
    device: str,
    once: Sequence[Case],
) -> tuple[dict[Case, list[Round]], dict[Case, NDArray[np.float32]]]:
    """Return each case's rounds, and the logits of its last one."""
    rounds: dict[Case, list[Round]] = {case: [] for case in folders}
    logits: dict[Case, NDArray[np.float32]] = {}
    lists = {
        "pairs": candidates.pairs,
        "query_ids": [row.query_id for row in candidates.rows],
        "first_scores": candidates.first_scores,
    }
    with tempfile.TemporaryDirectory(prefix="xopt-bench-") as scratch:
        pairs_file = Path(scratch) / "pairs.json"
        pairs_file.write_text(json.dumps(lists), encoding="utf-8")
        with progress("bench", repeat, "rounds", work=repeat) as step:
            for number in range(repeat):
                in_round = [case for case in folders if number == 0 or case not in once]
                with progress(f"round {number + 1}", len(in_round), "cases") as within:
                    for case in in_round:
                        log.info("round %d of %d: %s", number + 1, repeat, case)
                        within.begin(str(case))
                        found, logits[case] = _run(folders[case], case, pairs_file, threads, device)
                        rounds[case].append(found)
                step.advance()
    return rounds, logits


def _run(
    folder: ModelFolder, case: Case, pairs_file: Path, threads: int, device: str
) -> tuple[Round, NDArray[np.float32]]:
    strategy = STRATEGIES[case.strategy]
    plan = None
    if strategy.batch_size is None:
        plan = find_plan(folder, folder.variant(case.variant), threads, device)
    spec = ScorerSpec(
        folder=str(folder.path.resolve()),
        variant=case.variant,
        strategy=case.strategy,
        threads=threads,
        device=device,
        plan=plan,
        trusted=folder.trusted,
    )
    with started(threads) as worker, TreeMonitor(worker.pid) as monitor:
        worker.open({"spec": asdict(spec), "pairs_file": str(pairs_file)})
        done = worker.run()
    calls = [Call.of(call) for call in done["calls"]]
    start_s = done["start_s"]
    end_s = done["end_s"]
    if strategy.workers is not None:
        start_s = min(call.start_s for call in calls)
        end_s = max(call.end_s for call in calls)
    measured = Round(
        wall_s=end_s - start_s,
        query_s=done["end_s"] - done["start_s"],
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
    """Return how long at least one of the spans lasts."""
    total = 0.0
    reached = -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _summarise(
    case: Case,
    rounds: dict[Case, list[Round]],
    pairs: int,
    tokens: int,
    agreed: Agreement | None,
    cascaded: CascadeLosses | None,
    explained: Explained | None,
) -> Measured:
    own = rounds[case]
    wall_s = statistics.median(r.wall_s for r in own)
    calls_s = [call_s for r in own for call_s in r.calls_s]
    # A case that runs once has the first round only.
    ratios = [base.wall_s / r.wall_s for base, r in zip(rounds[BASELINE], own, strict=False)]
    return Measured(
        case=case,
        pairs_per_s=pairs / wall_s,
        tokens_per_s=tokens / wall_s,
        ratio=statistics.median(ratios),
        p50_s=float(np.percentile(calls_s, 50)),
        p95_s=float(np.percentile(calls_s, 95)),
        load_s=statistics.median(r.load_s for r in own),
        peak_bytes=max(r.usage.peak_bytes for r in own),
        mean_cores=statistics.median(r.usage.mean_cores for r in own),
        peak_cores=max(r.usage.peak_cores for r in own),
        root_mean_cores=statistics.median(r.usage.root_mean_cores for r in own),
        agreement=agreed,
        cascaded=cascaded,
        explained=explained,
        rounds=tuple(own),
    )


def _compare(
    folder: ModelFolder,
    candidates: Candidates,
    case: Case,
    logits: dict[Case, NDArray[np.float32]],
) -> tuple[Agreement | None, CascadeLosses | None]:
    rank = folder.manifest.ranking
    reference = rank(logits[BASELINE])
    scores = rank(logits[case])
    cascaded = None
    if STRATEGIES[case.strategy].by_query:
        cascaded = CascadeLosses.of(Cascade.of(folder), candidates, reference, scores)
        scores = np.nan_to_num(scores, nan=-np.inf)  # what was not scored comes last
    elif not np.isfinite(logits[case]).all():
        unsound = int((~np.isfinite(logits[case])).sum())
        log.warning("%s: %d scores are not finite, so no agreement is shown", case, unsound)
        return None, None
    if not folder.manifest.ranks or not np.isfinite(logits[BASELINE]).all():
        return None, cascaded
    return agreement(candidates, reference, scores), cascaded


def _explain(
    folder: ModelFolder,
    case: Case,
    rounds: list[Round],
    threads: int,
    ceilings: Ceilings,
    sample: Sequence[Pair],
) -> Explained:
    """Explain the round with the median time; with a `sample` also profile a planned case."""
    median = sorted(rounds, key=lambda r: r.wall_s)[len(rounds) // 2]
    variant = folder.variant(case.variant)
    strategy = STRATEGIES[case.strategy]
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
    profiled = None
    if sample and case.strategy == "planned":
        with progress(f"profiling {case.variant}"):
            profiled = profile(folder, case.variant, find_plan(folder, variant, threads), sample)
    return explain(observed, ModelShape.of(folder, variant), ceilings, profiled)
