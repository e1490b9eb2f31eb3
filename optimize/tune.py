"""Tune: find the plan (callers x threads x tokens a forward) that this machine runs a variant
fastest with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import Manifest, ModelFolder, Plan
from xopt.runtime.machine import cores, machine_name
from xopt.runtime.scoring.encode import Encoder, Pair, Tokens
from xopt.runtime.scoring.scorer import PlannedScorer, open_scorer
from xopt.runtime.scoring.variants import BACKENDS, check_variant

__all__ = ["Trial", "Tuning", "contenders", "plans_for", "tune"]

log = logging.getLogger(__name__)

TOKENS = {"cpu": (256, 512, 1024, 2048, 4096), "cuda": tuple(1 << power for power in range(13, 19))}
AHEAD = (1, 2, 4)  # calls of the tokenizer ahead of a GPU
# Pairs of the first rung, on a GPU enough for its forwards; each further rung has half the plans
# and twice the pairs.
FIRST_PAIRS = {"cpu": 24, "cuda": 4096}
# Plans that are left at the last rung: which of them is the fastest changes from run to run.
FINALISTS = 4
# Of the fastest variant's speed before tuning, which has given one variant up to 1.6 times more
# than another.
CONTENDS = 0.6


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


def plans_for(threads: int, device: str = "cpu") -> list[Plan]:
    """All plans that use `threads` threads: each way to share them out among callers, with each
    token budget.

    On a GPU, each number of tokenising calls ahead of it with each token budget.
    """
    shares = [
        (callers, threads // callers) for callers in range(1, threads + 1) if threads % callers == 0
    ]
    if device == "cuda":
        shares = [(1, ahead) for ahead in AHEAD]
    return [Plan(callers, each, tokens) for callers, each in shares for tokens in TOKENS[device]]


def contenders(
    folder: ModelFolder, variants: Sequence[str], candidates: Candidates, device: str = "cpu"
) -> list[str]:
    """Of `variants`, in their order, those that may turn out the fastest, and the fastest of the
    exact ones.

    Each is measured on the pairs of tuning's first rung, by its plan or the default one. An exact
    variant passes every gate, so that one is what is left where the faster ones fail. Raises
    BadInput where a variant cannot run.
    """
    tokens = Encoder(folder).encode(candidates.pairs)
    rows = _evenly(tokens, FIRST_PAIRS[device])
    rates = {}
    for variant in variants:
        scorer = open_scorer(folder, variant, device=device)
        compiles = BACKENDS[folder.variant(variant).backend].compiles
        rates[variant] = _rate(scorer, tokens, rows, candidates.pairs, compiles)
        log.info("tune: %s scores %.0f pairs/s before it is tuned", variant, rates[variant])
    exact = [variant for variant in variants if folder.variant(variant).precision == "fp32"]
    safe = max(exact, key=lambda variant: rates[variant], default=None)
    near = CONTENDS * max(rates.values())
    return [variant for variant in variants if rates[variant] >= near or variant == safe]


def tune(
    folder: ModelFolder,
    variants: Sequence[str],
    candidates: Candidates,
    threads: int | None = None,
    device: str = "cpu",
) -> tuple[ModelFolder, list[Tuning]]:
    """Find a plan for each variant and write them into the manifest, under this machine's name.

    Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943): all plans on few pairs,
    the faster half on twice as many, until at most `FINALISTS` are left, of which the fastest is
    taken. Pairs are drawn evenly over the lengths. A plan for a GPU is measured with its
    tokenising, which the forwards overlap.
    """
    folder.check_writable()  # before the work, not after it
    for variant in variants:
        check_variant(folder.variant(variant), device)
    tunings = [
        _tune_variant(folder, variant, candidates, threads or cores(), device)
        for variant in variants
    ]
    machine, found = machine_name(device), {tuning.variant: tuning.best for tuning in tunings}

    def add(to: Manifest) -> Manifest:
        return replace(to, plans={**to.plans, machine: {**to.plans.get(machine, {}), **found}})

    return folder.write(add), tunings


def _tune_variant(
    folder: ModelFolder, variant: str, candidates: Candidates, threads: int, device: str
) -> Tuning:
    plans = plans_for(threads, device)
    tokens = Encoder(folder).encode(candidates.pairs)
    rates: dict[Plan, list[float]] = {plan: [] for plan in plans}
    compiles = BACKENDS[folder.variant(variant).backend].compiles
    opened: dict[int, PlannedScorer] = {}

    def share(plan: Plan) -> int:
        """The threads that a scorer is opened with; on a GPU one has all plans."""
        return plan.threads if device == "cpu" else 0

    alive, pairs = plans, FIRST_PAIRS[device]
    while True:
        rows = _evenly(tokens, pairs)
        for plan in sorted(alive, key=lambda plan: (share(plan) not in opened, share(plan))):
            if share(plan) not in opened:
                opened.clear()  # one at a time: of many cores all shares' would fill memory
                opened[share(plan)] = open_scorer(folder, variant, plan=plan, device=device)
            rates[plan].append(
                _rate(opened[share(plan)].with_plan(plan), tokens, rows, candidates.pairs, compiles)
            )
        alive = sorted(alive, key=lambda plan: -rates[plan][-1])
        log.info(
            "tune %s: %d plans on %d pairs, best %s: %.1f pairs/s",
            variant,
            len(alive),
            len(rows),
            alive[0],
            rates[alive[0]][-1],
        )
        if len(alive) <= FINALISTS:
            break
        alive, pairs = alive[: (len(alive) + 1) // 2], pairs * 2
    trials = sorted(
        (Trial(p, tuple(r)) for p, r in rates.items()),
        key=lambda t: (-len(t.pairs_per_s), -t.pairs_per_s[-1]),
    )
    return Tuning(variant, machine_name(device), alive[0], tuple(trials))


def _evenly(tokens: Tokens, pairs: int) -> NDArray[np.intp]:
    """Rows of `pairs` of the pairs, evenly over the lengths, in a fixed random order; all where
    there are fewer.
    """
    by_length = np.argsort(tokens.lengths, kind="stable")
    rows = by_length[np.linspace(0, len(by_length) - 1, min(pairs, len(by_length))).astype(int)]
    return np.random.default_rng(0).permutation(rows)


def _rate(
    scorer: PlannedScorer,
    tokens: Tokens,
    rows: NDArray[np.intp],
    pairs: Sequence[Pair],
    compiles: bool,
) -> float:
    """Pairs a second, after a warm-up; 0 where the plan does not fit into memory.

    A device, and a backend that `compiles`, are warmed up for every shape: the latter twice, for
    each of its callers.
    """
    plan, sample, texts = scorer.plan, tokens.taken(rows), [pairs[row] for row in rows]
    few = (
        rows if scorer.backend.streams or compiles else rows[:: -(-len(rows) // (2 * plan.callers))]
    )
    for _ in range(1 + compiles):  # the first forward of a shape allocates
        scorer.score_tokens(tokens.taken(few))
    start = time.perf_counter()
    if scorer.backend.streams:
        scorer.logits(texts)
    else:
        scorer.score_tokens(sample)
    return len(rows) / (time.perf_counter() - start) if scorer.plan == plan else 0.0
