"""A cascade within the main job: where the data are a case for one."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from xopt.optimize.cascade.certify import Certified, certify
from xopt.optimize.cascade.parts import told
from xopt.optimize.judge.bounds import queries_needed
from xopt.runtime.bench.bench import Bench, Case, bench
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.folder import ModelFolder

__all__ = ["Tried", "try_cascade"]

log = logging.getLogger(__name__)

DEPTH = 50  # candidates a query, in the mean, from which a cascade is tried without being asked for
MAX_LOSS, CONFIDENCE = 0.01, 0.95
BENCH_QUERIES = 8


@dataclass(frozen=True)
class Tried:
    """What was certified and, where that saves pairs, a bench of it beside scoring everything."""

    certified: Certified
    bench: Bench | None


def try_cascade(
    folder: ModelFolder,
    candidates: Candidates,
    variant: str,
    speeds: dict[str, float],
    minutes: float | None,
    device: str,
) -> Tried | None:
    """Certify a cascade with its defaults, and time it; None where it has no chance, fails or
    would take too long.

    `speeds` are pairs a second of the variant and of what scores the reference.
    """
    queries = len(candidates.groups())
    needed = queries_needed(MAX_LOSS, 1 - CONFIDENCE)
    if (
        not folder.manifest.ranks
        or len(candidates.rows) < DEPTH * queries
        or len(candidates.split()[1].without(told(folder, variant, None)).groups()) < needed
    ):
        return None
    takes_s = sum(
        len(candidates.rows) / speed
        for speed in (speeds[variant], max(speeds.get("onnx-fp32", 0), speeds["torch-fp32"]))
    )
    if minutes is not None and takes_s > 60 * minutes:
        log.info(
            "cascade: not tried, it takes %.0f minutes; `xopt cascade %s --data DATA` does it, on queries that did not "
            "choose %s",
            takes_s / 60,
            folder.path,
            variant,
        )
        return None
    try:
        certified = certify(
            folder, candidates, variant, max_loss=MAX_LOSS, confidence=CONFIDENCE, device=device
        )
        if certified.cascade is None:
            return Tried(certified, None)
        few = candidates.split()[1].between(0, BENCH_QUERIES)
        cases = [Case(variant, "planned"), Case(variant, "cascade")]
        made = ModelFolder.open(folder.path, folder.trusted)
        return Tried(certified, bench(made, few, cases, repeat=1, device=device))
    except (BadInput, GateFailed) as error:  # what was found before stands
        log.warning("cascade: not tried to its end: %s", error)
        return None
