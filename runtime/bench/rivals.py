"""Rivals: what a user would run instead of xopt, each with the batch size that it is fastest
with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from xopt.runtime.bench.bench import BASELINE, Bench, Case, Measured, bench
from xopt.runtime.bench.strategy import SMALL_BATCHES
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.variants import BACKENDS

__all__ = ["fastest_rival", "rivals"]

log = logging.getLogger(__name__)

TRIAL_PAIRS = 64


def rivals(
    folder: ModelFolder,
    candidates: Candidates,
    peers: ModelFolder,
    own: Sequence[str],
    threads: int | None,
) -> list[Case]:
    """Cases of the variants `own` of the folder, which sentence-transformers runs, and of those
    of `peers`.

    What sentence-transformers runs has batches of 32, its default, and of 8 or 1 where one of
    them is faster on some pairs; the others are fed with xopt's plan.
    """
    fed = [name for name, each in peers.manifest.variants.items() if BACKENDS[each.backend].peer]
    variants = [*own, *(name for name in peers.manifest.variants if name not in fed)]
    tried = [
        Case(variant, strategy)
        for variant in variants
        for strategy in (BASELINE.strategy, *SMALL_BATCHES)
    ]
    log.info("peers: trying batches of 32, 8 and 1 on %d pairs", TRIAL_PAIRS)
    trial = bench(
        folder, candidates.head(TRIAL_PAIRS), tried, threads=threads, repeat=1, peers=peers
    )
    cases = []
    for variant in variants:
        best = max(
            (m for m in trial.measured if m.case.variant == variant), key=lambda m: m.pairs_per_s
        )
        cases += list(dict.fromkeys([Case(variant, BASELINE.strategy), best.case]))
    return cases + [Case(name, "planned") for name in fed]


def fastest_rival(result: Bench, cases: Sequence[Case]) -> tuple[Measured, Measured | None]:
    """The fastest of `cases`, and the fastest of all others that agrees no less with the
    reference, if there is one.
    """
    rival = max((m for m in result.measured if m.case in cases), key=lambda m: m.pairs_per_s)
    least = rival.agreement.tau if rival.agreement and math.isfinite(rival.agreement.tau) else -1.0
    ours = [
        m
        for m in result.measured
        if m.case not in cases and m.agreement and m.agreement.tau >= least
    ]
    return rival, max(ours, key=lambda m: m.pairs_per_s, default=None)
