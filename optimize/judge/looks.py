"""How often one may look: the levels of a test that is repeated as queries come in.

Who looks again and again at a 95 % bound, and stops as soon as it holds, is wrong far more often
than in 5 % of cases. In a group-sequential test each look has a level of its own, so that all
together err no more. Here the error is spent in proportion to the queries seen (Lan and DeMets
1983, "Discrete sequential boundaries for clinical trials", Biometrika 70; the spending function
is Kim and DeMets's of 1987 with exponent 1), and the levels follow from the means' joint
distribution, which is that of a Brownian motion (Armitage, McPherson and Rowe 1969).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

__all__ = ["FIRST_LOOK", "look_sizes", "one_sided_levels"]

FIRST_LOOK = 32  # queries: enough for what is clear, and for a mean of theirs to be near normal
GRID = 1000  # points of the Brownian motion's density; twice as many move no level by 1e-5
REACH = 8.0  # standard deviations that the grid covers

Floats = NDArray[np.float64]


def look_sizes(queries: int) -> list[int]:
    """How many queries to have seen at each look: twice as many as at the one before, and all of
    them at the last.
    """
    sizes = []
    size = FIRST_LOOK
    while size < 0.75 * queries:  # a last look at hardly more queries would only cost error
        sizes.append(size)
        size *= 2
    return [*sizes, queries]


def one_sided_levels(sizes: Sequence[int], alpha: float) -> list[float]:
    """The level of a one-sided test at each look, so that a true null hypothesis is rejected with
    probability `alpha`.

    `sizes` are the queries seen at each look, rising; the last one is the most that there can be.
    A single look has the level `alpha`.
    """
    levels: list[float] = []
    # of the motion that has crossed no bound yet; weights sum up to its share
    at, density = np.zeros(1), np.ones(1)
    before = 0.0
    for now in (size / sizes[-1] for size in sizes):
        spread, reach = math.sqrt(now - before), REACH * math.sqrt(now)
        bound = _bound(at, density, spread, reach, alpha * (now - before))
        levels.append(float(stats.norm.sf(bound / math.sqrt(now))))
        grid = np.linspace(-reach, bound, GRID)
        weights = np.full(GRID, grid[1] - grid[0])
        weights[[0, -1]] /= 2  # the trapezoid rule
        density = weights * (stats.norm.pdf((grid[:, None] - at) / spread) @ density) / spread
        at, before = grid, now
    return levels


def _bound(at: Floats, density: Floats, spread: float, reach: float, error: float) -> float:
    """What the motion, after a step of this standard deviation, lies beyond with probability
    `error`.
    """

    def excess(bound: float) -> float:
        return float(density @ stats.norm.sf((bound - at) / spread)) - error

    return float(optimize.brentq(excess, -reach, reach))
