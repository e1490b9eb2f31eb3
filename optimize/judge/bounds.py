"""Upper bounds on a mean loss, for any distribution and any number of queries.

They assume only that losses lie between 0 and 1 and that queries are exchangeable.

With a confidence of 1 - `error`, the mean loss is at most the limit. For losses of 0 or 1 this is
the binomial bound (Clopper and Pearson 1934). For others it is a bet against the limit
(Waudby-Smith and Ramdas 2024, JRSS B 86). The bet pays the product of `(1 - loss) / (1 - limit)`
over queries. Where the mean is `limit` or more, that exceeds 1 / `error` with a probability of at
most `error` (Markov).

Where `error` is None, the next query's expected loss is at most the limit (conformal risk
control, Angelopoulos et al. 2022, arXiv:2208.02814). This takes a third of the queries, but
some certificates lose more.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["least_mean", "queries_needed", "rounded_up", "upper_bound"]


def upper_bound(losses: NDArray[np.float64], error: float | None, binary: bool = False) -> float:
    """Return the smallest limit that float64[queries] losses show. `binary` ones are 0 or 1."""
    count = len(losses)
    if error is None:
        return (float(losses.sum()) + 1) / (count + 1)
    if binary:
        lost = int(losses.sum())
        if lost == count:
            return 1.0
        return float(stats.beta.isf(error, lost + 1, count - lost))
    if (losses >= 1).any():
        return 1.0
    # the limit for which the product equals 1 / error
    log_kept = float(np.log1p(-losses).sum())
    return -math.expm1((math.log(error) + log_kept) / count)


def queries_needed(limit: float, error: float | None) -> int:
    """Return how many queries without any loss it takes to show `limit`."""
    queries = 1 / limit - 1 if error is None else math.log(error) / math.log1p(-limit)
    return math.ceil(queries - 1e-9)  # rounding errors add no query


def rounded_up(limit: float) -> float:
    """Round a limit up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(limit)) - 1)
    return round(math.ceil(limit / unit) * unit, 12)


def least_mean(queries: int, error: float | None) -> float:
    """Return the smallest limit that so many queries without any loss can show."""
    return upper_bound(np.zeros(max(1, queries)), error)
