"""Means over queries with intervals, and gates that know when the queries are too few.

Intervals are percentile bootstraps over queries (Efron and Tibshirani 1993; for retrieval, Sakai 2006),
paired where two rankings are compared, because a value is a query's difference. A gate passes where the whole
90 % interval is on the right side of its bound, so that each end is a one-sided 95 % bound: for a
loss with a margin that is the non-inferiority test (Schuirmann 1987).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "FAILED",
    "FEWEST_QUERIES",
    "PASSED",
    "ROUNDING",
    "UNDECIDED",
    "Gate",
    "GateResult",
    "Interval",
    "hold",
    "interval",
]

CONFIDENCE = 0.90
RESAMPLES = 4999
Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
FEWEST_QUERIES = 10  # fewer say nothing about the spread, so that no gate passes
MOST_QUERIES = 1_000_000
ROUNDING = 1e-9  # the tau-b of a ranking with itself can miss 1 by so much
PASSED, FAILED, UNDECIDED = "pass", "fail", "undecided"


@dataclass(frozen=True)
class Interval:
    """A mean over queries and its 90 % interval."""

    mean: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Gate:
    """A bound on a measure's mean: at least `bound`, or at most `bound` where `at_most`.

    `unseen` is what one query more could move the measure by where it moves at all. A bootstrap of a
    few queries, none of which happened to move, would be certain that none does. Two queries are added to it
    therefore, one that gains and one that loses so much, as Agresti and Coull 1998 add two of each outcome.
    """

    measure: str
    bound: float
    at_most: bool = False
    unseen: float = 0.0


@dataclass(frozen=True)
class GateResult:
    """A gate, the interval that it was held against, and how many queries would decide it where these do not.

    `queries_needed` is None where it is decided, or where a million would not do. It takes the mean and
    the spread to stay as they are.
    """

    gate: Gate
    interval: Interval
    verdict: str
    queries_needed: int | None = None


def interval(values: NDArray[np.float64], unseen: float = 0.0) -> Interval:
    """The mean of a value a query, NaN left out, and its interval; `unseen` as in `Gate`."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    seen = np.concatenate([values, [mean - unseen, mean + unseen]]) if unseen else values
    if np.ptp(seen) == 0:
        return Interval(mean, mean, mean, len(values))
    found = stats.bootstrap(
        (seen,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(values))


def hold(gate: Gate, values: NDArray[np.float64], same: bool) -> GateResult:
    """Hold a gate against a value a query. `same`: the scores are the reference's, so that few queries are enough."""
    found = interval(values, 0.0 if same else gate.unseen)
    sign = -1 if gate.at_most else 1
    room = sign * (found.mean - gate.bound)  # how far within the bound the mean is
    worst, best = sorted((sign * (found.low - gate.bound), sign * (found.high - gate.bound)))
    if best < -ROUNDING:
        return GateResult(gate, found, FAILED)
    if worst >= -ROUNDING and (same or found.queries >= FEWEST_QUERIES):
        return GateResult(gate, found, PASSED)
    needed = _queries_needed(values, room, gate.unseen)
    return GateResult(gate, found, UNDECIDED, needed and max(needed, found.queries + 1))


def _queries_needed(values: NDArray[np.float64], room: float, unseen: float) -> int | None:
    """How many such queries have an interval within `room` of their mean; None where even very many have not."""
    queries = np.arange(FEWEST_QUERIES, MOST_QUERIES)
    added = 2 if unseen else 0
    reach = Z * np.sqrt(queries * np.nanvar(values) + added * unseen**2) / (queries + added)
    enough = queries[reach <= abs(room)]
    return int(enough[0]) if len(enough) else None
