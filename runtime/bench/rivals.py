"""Rivals: what a user would run instead of xopt, each with its fastest batch size."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from xopt.runtime.bench.bench import BASELINE, Bench, Case, Measured, bench
from xopt.runtime.bench.ctranslate2 import CTRANSLATE2
from xopt.runtime.bench.strategy import SMALL_BATCHES
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder

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
    """Return the cases of all `peers`, and of `own` variants that sentence-transformers runs.

    Each has batches of 32, the default, and of 8 or 1 where that is faster on some pairs.
    CTranslate2 runs with xopt's plan instead.
    """
    variants = list(own)
    planned = []
    for peer in peers.manifest.variants.values():
        if peer.backend == CTRANSLATE2:
            planned.append(Case(peer.name, "planned"))
        else:
            variants.append(peer.name)
    strategies = [BASELINE.strategy, *SMALL_BATCHES]
    tried = [Case(variant, strategy) for variant in variants for strategy in strategies]
    log.info("peers: trying batches of 32, 8 and 1 on %d pairs", TRIAL_PAIRS)
    trial = bench(
        folder, candidates.head(TRIAL_PAIRS), tried, threads=threads, repeat=1, peers=peers
    )
    cases = []
    for variant in variants:
        fastest = _fastest([m for m in trial.measured if m.case.variant == variant])
        cases.append(Case(variant, BASELINE.strategy))
        if fastest.case not in cases:
            cases.append(fastest.case)
    return cases + planned


def fastest_rival(result: Bench, cases: Sequence[Case]) -> tuple[Measured, Measured | None]:
    """Return the fastest of `cases`, and the fastest other whose tau is no less, or None."""
    rival = _fastest([m for m in result.measured if m.case in cases])
    least = -1.0
    if rival.agreement and math.isfinite(rival.agreement.tau):
        least = rival.agreement.tau
    others = [m for m in result.measured if m.case not in cases]
    ours = [m for m in others if m.agreement and m.agreement.tau >= least]
    return rival, _fastest(ours) if ours else None


def _fastest(measured: Sequence[Measured]) -> Measured:
    return max(measured, key=lambda m: m.pairs_per_s)
