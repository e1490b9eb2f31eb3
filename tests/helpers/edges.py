"""Values of one query each whose mean lies exactly at a gate's bound: where a verdict errs most
often.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xopt.optimize.judge.statistics import Gate
from xopt.optimize.judge.verdict import SWAP

Values = Callable[[np.random.Generator, int], np.ndarray]


def taus(random: np.random.Generator, n: int) -> np.ndarray:
    return 1 - 0.07 * random.gamma(2, 0.5, n)  # mean 0.93, skewed as agreement is


def overlaps(random: np.random.Generator, n: int) -> np.ndarray:
    return random.binomial(10, 0.9, n) / 10


def losses(random: np.random.Generator, n: int) -> np.ndarray:
    return 0.01 * random.gamma(0.7, 1 / 0.7, n)  # many near 0, a few large


def drops(random: np.random.Generator, n: int) -> np.ndarray:
    moved = random.random(n) < 0.13  # of one relevant document, by a rank or more
    size = random.choice([0.07, 0.13, 0.37], n)
    return np.where(moved, size * random.choice([-1, 1], n), 0.0) + 0.005


AT_THE_EDGE = [
    (Gate("tau", 0.93), taus),
    (Gate("top10", 0.9), overlaps),
    (Gate("dcg10_loss", 0.01, at_most=True), losses),
    (Gate("ndcg10_drop", 0.005, at_most=True, unseen=SWAP), drops),
]
