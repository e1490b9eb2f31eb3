"""Means over queries with intervals, and gates that know when the queries are too few.

Intervals are Student's t over queries, paired where two rankings are compared, because a value is
a query's difference: of the tests in use for retrieval the one that keeps its error best (Urbano,
Lima and Hanjalic 2019, "Statistical significance testing in information retrieval", SIGIR).
Measures of agreement are skewed, most queries near the best value and a few far below, which t
alone takes for better than it is; Hall's transformation corrects for that (Hall 1992, "On the
removal of skewness by transformation", JRSS B 54). A gate passes where the whole interval is on
the right side of its bound, so that each end is a one-sided bound: for a loss with a margin that
is the non-inferiority test (Schuirmann 1987).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    "hold",
    "interval",
]

# Of each one-sided bound: 93 % intervals. 0.035, so that with all looks, of the most skewed
# measures too, at most one gate in twenty passes wrongly at its edge; see
# tests/optimize/judge/test_looks.py.
ALPHA = 0.035
FEWEST_QUERIES = 10  # fewer say nothing about the spread, so that no gate passes
MOST_QUERIES = 1_000_000
NO_SKEW = 1e-3  # where the transformation is the identity
ROUNDING = 1e-9  # the tau-b of a ranking with itself can miss 1 by so much
PASSED, FAILED, UNDECIDED = "pass", "fail", "undecided"


@dataclass(frozen=True)
class Interval:
    """A mean over queries and its interval: 93 %, or wider where there are several looks; see
    `looks`.
    """

    mean: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Gate:
    """A bound on a measure's mean: at least `bound`, or at most `bound` where `at_most`.

    `unseen` is what one query more could move the measure by where it moves at all. A few
    queries, none of which happened to move, have no spread, as if none ever did. Two queries are
    added to them therefore, one that gains and one that loses so much, as Agresti and Coull 1998
    add two of each outcome.

    `veto`: the gate counts where it fails, and holds nothing up where it is undecided. `asked`:
    its bound was given, so that a measure that the data do not have leaves it undecided; other
    gates are left out there.
    """

    measure: str
    bound: float
    at_most: bool = False
    unseen: float = 0.0
    veto: bool = False
    asked: bool = False


@dataclass(frozen=True)
class GateResult:
    """A gate, the interval that it was held against, and how many queries would decide it where
    these do not.

    `queries_needed` is None where it is decided, or where a million would not do. It takes the
    mean and the spread to stay as they are, and no look before the last.
    """

    gate: Gate
    interval: Interval
    verdict: str
    queries_needed: int | None = None


def interval(values: NDArray[np.float64], unseen: float = 0.0, level: float = ALPHA) -> Interval:
    """The mean of a value a query without NaN, and its interval, each end a bound at `level`;
    `unseen` as in `Gate`.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(values.mean())
    seen = np.concatenate([values, [mean - unseen, mean + unseen]]) if unseen else values
    if np.ptp(seen) <= ROUNDING:
        return Interval(mean, mean, mean, len(values))
    n, spread = len(seen), float(seen.std(ddof=1))
    quantile = float(stats.t.isf(level, n - 1)) / math.sqrt(n)
    skew = float(np.mean((seen - seen.mean()) ** 3) / seen.std() ** 3)
    ends = (mean - spread * _hall(quantile, skew, n), mean - spread * _hall(-quantile, skew, n))
    low, high = (max(-1.0, min(1.0, end)) for end in ends)  # no measure lies beyond
    return Interval(mean, min(low, mean), max(high, mean), len(values))


def _hall(quantile: float, skew: float, n: int) -> float:
    """A quantile of the mean's error in standard deviations, from that of a symmetric one: Hall's
    g inverted.
    """
    if abs(skew) < NO_SKEW:
        return quantile
    return 3 / skew * (float(np.cbrt(1 + skew * (quantile - skew / (6 * n)))) - 1)


def hold(gate: Gate, values: NDArray[np.float64], same: bool, level: float = ALPHA) -> GateResult:
    """Hold a gate against a value a query. `same`: the scores are the reference's, so that few
    queries are enough.
    """
    found = interval(values, 0.0 if same else gate.unseen, level)
    if not found.queries:
        return GateResult(gate, found, PASSED if same else UNDECIDED)
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
    """How many such queries have an interval within `room` of their mean; None where even very
    many have not.
    """
    added, z2 = 2 if unseen else 0, float(stats.norm.isf(ALPHA)) ** 2
    # z sqrt(n variance + added unseen^2) / (n + added) <= room, squared and solved for n
    a, variance = room**2, float(np.nanvar(values))
    b = 2 * added * a - z2 * variance
    c = added**2 * a - z2 * added * unseen**2
    inner = b * b - 4 * a * c
    if a == 0:
        return None
    queries = math.ceil((-b + math.sqrt(inner)) / (2 * a)) if inner >= 0 else 0
    return max(FEWEST_QUERIES, queries) if queries < MOST_QUERIES else None
