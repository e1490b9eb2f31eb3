"""Tune: find the plan (callers x threads x tokens a forward) that this machine runs a variant fastest with."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xopt.runtime.candidates import Candidates
from xopt.runtime.encode import Tokens
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import cores, machine_name
from xopt.runtime.scorer import PlannedScorer, open_scorer

__all__ = ["Trial", "Tuning", "plans_for", "tune"]

log = logging.getLogger(__name__)

TOKENS = (256, 512, 1024, 2048, 4096)
FIRST_PAIRS = 24  # pairs of the first rung; each further rung has half the plans and twice the pairs


@dataclass(frozen=True)
class Trial:
    """One plan, measured: pairs a second in each rung that it reached."""

    plan: Plan
    pairs_per_s: tuple[float, ...]


@dataclass(frozen=True)
class Tuning:
    """The plan found for a variant, and all trials, best first."""

    variant: str
    machine: str
    best: Plan
    trials: tuple[Trial, ...]


def plans_for(threads: int) -> list[Plan]:
    """All plans that use `threads` threads: each way to share them out among callers, with each token budget."""
    shares = [(callers, threads // callers) for callers in range(1, threads + 1) if threads % callers == 0]
    return [Plan(callers, each, tokens) for callers, each in shares for tokens in TOKENS]


def tune(
    folder: ModelFolder, variants: Sequence[str], candidates: Candidates, threads: int | None = None
) -> tuple[ModelFolder, list[Tuning]]:
    """Find a plan for each variant and write them into the manifest, under this machine's name.

    Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): all plans on few pairs, the
    faster half on twice as many, until one is left. Pairs are drawn evenly over the lengths.
    """
    for variant in variants:
        folder.variant(variant)
    tunings = [_tune_variant(folder, variant, candidates, threads or cores()) for variant in variants]
    plans = dict(folder.manifest.plans)
    plans[machine_name()] = {**plans.get(machine_name(), {}), **{t.variant: t.best for t in tunings}}
    return folder.write(plans=plans), tunings


def _tune_variant(folder: ModelFolder, variant: str, candidates: Candidates, threads: int) -> Tuning:
    plans = plans_for(threads)
    by_threads = {plan.threads: plan for plan in plans}
    scorers = {n: open_scorer(folder.path, variant, plan=plan) for n, plan in by_threads.items()}
    tokens = next(iter(scorers.values())).encoder.encode(candidates.pairs)
    rates: dict[Plan, list[float]] = {plan: [] for plan in plans}
    alive, pairs = plans, FIRST_PAIRS
    while True:
        sample = _evenly(tokens, pairs)
        for plan in alive:
            rates[plan].append(_rate(scorers[plan.threads].with_plan(plan), sample))
        alive = sorted(alive, key=lambda plan: -rates[plan][-1])
        log.info(
            "tune %s: %d plans on %d pairs, best %s: %.1f pairs/s",
            variant,
            len(alive),
            len(sample.ids),
            alive[0],
            rates[alive[0]][-1],
        )
        if len(alive) <= 2:
            break
        alive, pairs = alive[: (len(alive) + 1) // 2], pairs * 2
    trials = sorted(
        (Trial(p, tuple(r)) for p, r in rates.items()), key=lambda t: (-len(t.pairs_per_s), -t.pairs_per_s[-1])
    )
    return Tuning(variant, machine_name(), alive[0], tuple(trials))


def _evenly(tokens: Tokens, pairs: int) -> Tokens:
    """`pairs` of the pairs, evenly over the lengths, in a fixed random order; all where there are no more."""
    by_length = np.argsort(tokens.lengths, kind="stable")
    rows = by_length[np.linspace(0, len(by_length) - 1, min(pairs, len(by_length))).astype(int)]
    rows = np.random.default_rng(0).permutation(rows)
    return Tokens([tokens.ids[i] for i in rows], [tokens.type_ids[i] for i in rows], tokens.lengths[rows], 0)


def _rate(scorer: PlannedScorer, sample: Tokens) -> float:
    scorer.score_tokens(_evenly(sample, 2 * scorer.plan.callers))  # the first forward of a shape allocates
    start = time.perf_counter()
    scorer.score_tokens(sample)
    return len(sample.ids) / (time.perf_counter() - start)
