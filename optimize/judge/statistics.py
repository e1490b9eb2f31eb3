"""Means over queries with intervals, and gates on them.

Intervals are those of the paired t-test, which suits retrieval best (Urbano, Lima and Hanjalic
2019, SIGIR). Hall's transformation corrects the skew of agreement measures (Hall 1992, JRSS B 54).
A gate passes where its whole interval is on the right side of the bound. For a loss this is the
non-inferiority test (Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "ALPHA",
    "FAILED",
    "FEWEST_QUERIES",
    "PASSED",
    "ROUNDING",
    "UNDECIDED",
    "Gate",
    "GateResult",
    "Interval",
    "Scores",
    "Values",
    "hold",
    "interval",
    "worst",
]

# The level of a one-sided bound. At most one gate in twenty then passes wrongly, with all looks and
# for the most skewed measures too.
ALPHA = 0.035
FEWEST_QUERIES = 10  # no gate passes with fewer: they show no spread
MOST_QUERIES = 1_000_000
NO_SKEW = 1e-3  # below it the transformation changes nothing
ROUNDING = 1e-9  # by so much tau-b of a ranking with itself can miss 1
PASSED = "pass"
FAILED = "fail"
UNDECIDED = "undecided"

Scores = NDArray[np.floating[Any]]
Values = NDArray[np.float64]  # one a query; NaN where it has none


@dataclass(frozen=True)
class Interval:
    """A mean over queries with its 93 % interval, which is wider at early looks."""

    mean: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Gate:
    """A bound on a measure's mean: the least, or with `at_most` the largest.

    `unseen` is how far one more query could move the measure. Since a few equal values show no
    spread, two queries are added, that far above and below the mean (Agresti and Coull 1998). A
    `veto` counts only where it fails. Gates that were not `asked` for are left out where their
    measure is missing.
    """

    measure: str
    bound: float
    at_most: bool = False
    unseen: float = 0.0
    veto: bool = False
    asked: bool = False


@dataclass(frozen=True)
class GateResult:
    """A gate's verdict and the interval behind it.

    `queries_needed` estimates how many queries would decide an undecided gate, at a single look.
    """

    gate: Gate
    interval: Interval
    verdict: str
    queries_needed: int | None = None


def worst(verdicts: Collection[str]) -> str:
    """Return the worst of these verdicts: a failed one, or else an undecided one."""
    for verdict in (FAILED, UNDECIDED):
        if verdict in verdicts:
            return verdict
    return PASSED


def interval(values: Values, unseen: float = 0.0, level: float = ALPHA) -> Interval:
    """Return the mean of the finite values, with a one-sided bound at `level` to each side."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    sample = values
    if unseen:
        sample = np.append(values, [mean - unseen, mean + unseen])
    if np.ptp(sample) <= ROUNDING:
        return Interval(mean, mean, mean, len(values))
    count = len(sample)
    std = float(sample.std(ddof=1))
    quantile = float(stats.t.isf(level, count - 1)) / math.sqrt(count)
    skew = float(np.mean((sample - sample.mean()) ** 3) / sample.std() ** 3)
    low = mean - std * _skewed(quantile, skew, count)
    high = mean - std * _skewed(-quantile, skew, count)
    # all measures lie between -1 and 1
    low = min(mean, max(-1.0, low))
    high = max(mean, min(1.0, high))
    return Interval(mean, low, high, len(values))


def _skewed(quantile: float, skew: float, count: int) -> float:
    """Correct a quantile of the mean's error for skew: the inverse of Hall's g."""
    if abs(skew) < NO_SKEW:
        return quantile
    root = float(np.cbrt(1 + skew * (quantile - skew / (6 * count))))
    return 3 / skew * (root - 1)


def hold(gate: Gate, values: Values, same: bool, level: float = ALPHA) -> GateResult:
    """Check a gate on float64[queries] values, NaN for queries without one.

    With `same`, scores equal the reference's, and any number of queries is enough.
    """
    found = interval(values, 0.0 if same else gate.unseen, level)
    if not found.queries:
        return GateResult(gate, found, PASSED if same else UNDECIDED)
    # Distances to the bound, positive on its right side.
    sign = -1 if gate.at_most else 1
    room = sign * (found.mean - gate.bound)
    ends = [sign * (found.low - gate.bound), sign * (found.high - gate.bound)]
    if max(ends) < -ROUNDING:
        return GateResult(gate, found, FAILED)
    enough = same or found.queries >= FEWEST_QUERIES
    if min(ends) >= -ROUNDING and enough:
        return GateResult(gate, found, PASSED)
    needed = _queries_needed(values, abs(room), gate.unseen)
    if needed is not None:
        needed = max(needed, found.queries + 1)
    return GateResult(gate, found, UNDECIDED, needed)


def _queries_needed(values: Values, room: float, unseen: float) -> int | None:
    """Estimate how many such queries have an interval of `room` to each side."""
    variance = float(np.nanvar(values))
    quantile = float(stats.norm.isf(ALPHA))
    added = 2 if unseen else 0

    def is_enough(queries: int) -> bool:
        std = math.sqrt(queries * variance + added * unseen**2)
        return quantile * std / (queries + added) <= room

    counts = range(FEWEST_QUERIES, MOST_QUERIES)
    index = bisect.bisect_left(counts, True, key=is_enough)
    return counts[index] if index < len(counts) else None
