"""Bounds on a mean loss that hold for any distribution and any number of queries.

A certificate promises a mean over queries that nobody has seen, so that it may assume nothing but
that losses lie between 0 and 1 and that queries are exchangeable. Two promises can be made.

With a confidence: but for an `error` the mean is at most the limit. For a loss of shares that is
a bet against the limit (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random
variables by betting", JRSS B 86): where the mean is `limit` or more, the product of (1 - loss) /
(1 - limit) over queries has an expectation of at most 1, and exceeds 1 / error with a probability
of at most `error` (Markov). For a loss of 0 or 1 it is the binomial test (Clopper and Pearson
1934). Without any loss both are the same, (1 - limit)^queries.

In expectation, where `error` is None: the expected loss of the next query, over the queries that
were drawn for the certificate too, is at most the limit (conformal risk control, Angelopoulos et
al. 2022, arXiv:2208.02814). It takes a third of the queries and promises less: of many
certificates some lose more.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["least_mean", "queries_needed", "upper_bound"]

Losses = NDArray[np.float64]


def upper_bound(losses: Losses, error: float | None, binary: bool = False) -> float:
    """The least limit that these losses show."""
    count = len(losses)
    if error is None:
        return (float(losses.sum()) + 1) / (count + 1)
    if binary:
        missed = int(losses.sum())
        return float(stats.beta.isf(error, missed + 1, count - missed)) if missed < count else 1.0
    if (losses >= 1).any():
        return 1.0
    return -math.expm1((math.log(error) + float(np.log1p(-losses).sum())) / count)


def queries_needed(limit: float, error: float | None) -> int:
    """How many queries it takes to show `limit` where none of them loses anything."""
    queries = 1 / limit - 1 if error is None else math.log(error) / math.log1p(-limit)
    return math.ceil(queries - 1e-9)  # what comes out whole is not one more


def rounded_up(limit: float) -> float:
    """The limit to two digits, none of them less."""
    unit = 10.0 ** (math.floor(math.log10(limit)) - 1)
    return round(math.ceil(limit / unit) * unit, 12)


def least_mean(queries: int, error: float | None) -> float:
    """The least limit that so many queries can show, where none of them loses anything."""
    return upper_bound(np.zeros(max(1, queries)), error)
