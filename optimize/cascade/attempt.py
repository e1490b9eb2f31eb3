"""A cascade within `xopt optimize`, if the data are a case for one."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from xopt.optimize.cascade.certify import Certified, Terms, certify, split_queries
from xopt.runtime.bench.bench import Bench, Case, bench
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.folder import ModelFolder

__all__ = ["CascadeAttempt", "try_cascade"]

log = logging.getLogger(__name__)

LEAST_DEPTH = 50  # candidates a query, in the mean
BENCH_QUERIES = 8


@dataclass(frozen=True)
class CascadeAttempt:
    """What was certified and, if that saves pairs, its bench."""

    certified: Certified
    bench: Bench | None


def try_cascade(
    folder: ModelFolder,
    candidates: Candidates,
    variant: str,
    speeds: dict[str, float],
    minutes: float | None,
    device: str,
) -> CascadeAttempt | None:
    """Certify a cascade with the defaults and time it.

    speeds: pairs a second, of the variant and of what may score the reference.
    Returns None if the data are too few, it would take over `minutes`, or it fails.
    """
    pairs = len(candidates.rows)
    if pairs < LEAST_DEPTH * len(candidates.groups()):
        return None
    try:
        split_queries(folder, candidates, variant, None, Terms(), device)
    except BadInput:
        return None
    reference_speed = max(speeds.get("onnx-fp32", 0), speeds["torch-fp32"])
    takes_s = pairs / speeds[variant] + pairs / reference_speed
    if minutes is not None and takes_s > 60 * minutes:
        log.info(
            "cascade: not tried, it takes %.0f minutes; run `xopt cascade %s --data DATA` "
            "on queries that did not choose %s",
            takes_s / 60,
            folder.path,
            variant,
        )
        return None
    try:
        return _certify_and_time(folder, candidates, variant, device)
    except (BadInput, GateFailed) as error:  # what was found before stands
        log.warning("cascade: not tried to its end: %s", error)
        return None


def _certify_and_time(
    folder: ModelFolder, candidates: Candidates, variant: str, device: str
) -> CascadeAttempt:
    certified = certify(folder, candidates, variant, device=device)
    if certified.cascade is None:
        return CascadeAttempt(certified, None)
    few = candidates.split()[1].between(0, BENCH_QUERIES)
    cases = [Case(variant, "planned"), Case(variant, "cascade")]
    with_cascade = ModelFolder.open(folder.path, folder.trusted)
    return CascadeAttempt(certified, bench(with_cascade, few, cases, repeat=1, device=device))
