"""Tune: find the plan that runs a variant fastest on this machine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import Manifest, ModelFolder, Plan
from xopt.runtime.machine import cores, machine_name
from xopt.runtime.progress import Step, progress
from xopt.runtime.scoring.encode import Encoder, Pair, Tokens
from xopt.runtime.scoring.scorer import PlannedScorer, open_scorer
from xopt.runtime.scoring.variants import BACKENDS, check_variant

__all__ = ["Trial", "Tuning", "contenders", "plans_for", "tune"]

log = logging.getLogger(__name__)

# Token budgets of a forward.
TOKENS = {
    "cpu": (256, 512, 1024, 2048, 4096),
    "cuda": (8192, 16384, 32768, 65536, 131072, 262144),
}
TOKENIZER_CALLS = (1, 2, 4)  # ahead of a GPU
FIRST_PAIRS = {"cpu": 24, "cuda": 4096}  # in the first rung; each further one doubles them
FINALISTS = 4  # plans of the last rung: the fastest of them changes from run to run
# Share of the fastest variant's speed before tuning, which gains up to 1.6 times more for one
# variant than for another.
CONTENDER_SHARE = 0.6


@dataclass(frozen=True)
class Trial:
    """A plan and its speed in each rung that it reached."""

    plan: Plan
    pairs_per_s: tuple[float, ...]


@dataclass(frozen=True)
class Tuning:
    """The plan found for a variant, and all trials, best first."""

    variant: str
    machine: str
    best: Plan
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class _Sample:
    """Pairs to measure speed with, as texts and as tokens."""

    pairs: list[Pair]
    tokens: Tokens


def plans_for(threads: int, device: str = "cpu") -> list[Plan]:
    """Return each way to share threads among callers, with each token budget.

    On a GPU `threads` has no effect: a plan's threads are calls of the tokenizer.
    """
    if device == "cuda":
        shares = [(1, calls) for calls in TOKENIZER_CALLS]
    else:
        divisors = [count for count in range(1, threads + 1) if threads % count == 0]
        shares = [(callers, threads // callers) for callers in divisors]
    return [Plan(callers, each, tokens) for callers, each in shares for tokens in TOKENS[device]]


def contenders(
    folder: ModelFolder, variants: Sequence[str], candidates: Candidates, device: str = "cpu"
) -> list[str]:
    """Return the variants that may be the fastest when tuned, and the fastest FP32 one.

    The FP32 one is for gates that no other passes. Raises BadInput where a variant cannot run.
    """
    tokens = Encoder(folder).encode(candidates.pairs)
    sample = _sample(candidates.pairs, tokens, FIRST_PAIRS[device])
    speeds = {}
    with progress("comparing variants", len(variants), "variants") as step:
        for variant in variants:
            step.begin(variant)
            scorer = open_scorer(folder, variant, device=device)
            speeds[variant] = _pairs_per_s(scorer, sample, _compiles(folder, variant))
            log.info("tune: %s scores %.0f pairs/s before it is tuned", variant, speeds[variant])
    exact = [variant for variant in variants if folder.variant(variant).precision == "fp32"]
    fastest_exact = max(exact, key=lambda variant: speeds[variant], default=None)
    least = CONTENDER_SHARE * max(speeds.values())
    return [name for name in variants if speeds[name] >= least or name == fastest_exact]


def tune(
    folder: ModelFolder,
    variants: Sequence[str],
    candidates: Candidates,
    threads: int | None = None,
    device: str = "cpu",
) -> tuple[ModelFolder, list[Tuning]]:
    """Find a plan for each variant, and write the plans into the manifest for this machine.

    - `variants`: names of variants in the folder.
    - `candidates`: pairs of all lengths to time the plans on.
    - `threads`: what a scorer may use, by default all usable cores.

    Uses successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943). All plans score few
    pairs, then the faster half scores twice as many, until at most four are left. On a GPU the
    time includes tokenising, which overlaps with forwards.

    Returns the folder with its new manifest, and what was tried for each variant.
    """
    folder.check_writable()  # before the work, not after it
    for variant in variants:
        check_variant(folder.variant(variant), device)
    threads = threads or cores()
    tunings = []
    with progress("tune", len(variants), "variants") as step:
        for name in variants:
            step.begin(name)
            tunings.append(_tune_variant(folder, name, candidates, threads, device))
    machine = machine_name(device)
    found = {tuning.variant: tuning.best for tuning in tunings}

    def add(manifest: Manifest) -> Manifest:
        plans = {**manifest.plans.get(machine, {}), **found}
        return replace(manifest, plans={**manifest.plans, machine: plans})

    return folder.write(add), tunings


def _tune_variant(
    folder: ModelFolder, variant: str, candidates: Candidates, threads: int, device: str
) -> Tuning:
    plans = plans_for(threads, device)
    rungs = _rungs(len(plans), FIRST_PAIRS[device])
    trial_count = sum(plan_count for plan_count, _ in rungs)
    most = len(candidates.pairs)
    work = sum(plan_count * min(pair_count, most) for plan_count, pair_count in rungs)
    with progress("trying plans", trial_count, "trials", work=work) as step:
        speeds = _plan_speeds(folder, variant, candidates, plans, device, step)
    trials = [Trial(plan, tuple(of_rungs)) for plan, of_rungs in speeds.items()]
    trials.sort(key=lambda trial: (-len(trial.pairs_per_s), -trial.pairs_per_s[-1]))
    return Tuning(variant, machine_name(device), trials[0].plan, tuple(trials))


def _rungs(plan_count: int, pair_count: int) -> list[tuple[int, int]]:
    """Return how many plans each rung tries, and on how many pairs."""
    rungs = [(plan_count, pair_count)]
    while plan_count > FINALISTS:
        plan_count = math.ceil(plan_count / 2)
        pair_count *= 2
        rungs.append((plan_count, pair_count))
    return rungs


def _plan_speeds(
    folder: ModelFolder,
    variant: str,
    candidates: Candidates,
    plans: list[Plan],
    device: str,
    step: Step,
) -> dict[Plan, list[float]]:
    """Return the speeds of each plan in the rungs that it reached."""
    pairs = candidates.pairs
    tokens = Encoder(folder).encode(pairs)
    compiles = _compiles(folder, variant)
    speeds: dict[Plan, list[float]] = {plan: [] for plan in plans}
    scorer: PlannedScorer | None = None
    open_threads = 0
    for plan_count, count in _rungs(len(plans), FIRST_PAIRS[device]):
        plans = plans[:plan_count]
        sample = _sample(pairs, tokens, count)
        plans.sort(key=lambda plan: plan.threads)
        plans.sort(key=lambda plan: plan.threads != open_threads)  # the open scorer's come first
        for plan in plans:
            if scorer is None or (plan.threads != open_threads and device == "cpu"):
                scorer = None  # frees its memory before the next is opened
                scorer = open_scorer(folder, variant, plan=plan, device=device)
                open_threads = plan.threads
            speeds[plan].append(_pairs_per_s(scorer.with_plan(plan), sample, compiles))
            step.advance(1, len(sample.pairs))
        plans.sort(key=lambda plan: -speeds[plan][-1])
        log.info(
            "tune %s: %d plans on %d pairs, best %s: %.1f pairs/s",
            variant,
            len(plans),
            len(sample.pairs),
            plans[0],
            speeds[plans[0]][-1],
        )
    return speeds


def _sample(pairs: Sequence[Pair], tokens: Tokens, count: int) -> _Sample:
    """Draw up to `count` pairs, evenly over their lengths, in a fixed random order."""
    by_length = np.argsort(tokens.lengths, kind="stable")
    places = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)
    rows = np.random.default_rng(0).permutation(by_length[places])
    return _Sample([pairs[row] for row in rows], tokens.taken(rows))


def _compiles(folder: ModelFolder, variant: str) -> bool:
    return BACKENDS[folder.variant(variant).backend].compiles


def _pairs_per_s(scorer: PlannedScorer, sample: _Sample, compiles: bool) -> float:
    """Measure speed after a warm-up; 0 where the scorer's plan does not fit into memory.

    A device allocates memory for each shape, so all shapes are warmed up. A backend that
    `compiles` scores them twice, so that each of its callers has compiled them.
    """
    plan = scorer.plan
    count = len(sample.pairs)
    step = 1
    if not (scorer.backend.streams or compiles):
        step = math.ceil(count / (2 * plan.callers))  # two pairs a caller
    warm_up = sample.tokens.taken(np.arange(0, count, step))
    for _ in range(2 if compiles else 1):
        scorer.score_tokens(warm_up)
    start = time.perf_counter()
    if scorer.backend.streams:
        scorer.logits(sample.pairs)
    else:
        scorer.score_tokens(sample.tokens)
    if scorer.plan != plan:  # it halved its tokens to fit
        return 0.0
    return count / (time.perf_counter() - start)
