"""Levels for a test that is repeated as queries come in.

Stopping at the first look where a 95 % bound holds is wrong in far more than 5 % of cases. In a
group-sequential test each look has its own level, and together they keep the error. It is spent
in proportion to the queries seen (Lan and DeMets 1983, Biometrika 70; Kim and DeMets 1987,
Biometrika 74). The means at the looks move as a Brownian motion does (Armitage, McPherson and
Rowe 1969, JRSS A 132), which gives the levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

__all__ = ["FIRST_LOOK", "look_sizes", "one_sided_levels"]

FIRST_LOOK = 32  # queries: enough for clear cases, and a nearly normal mean
GRID_POINTS = 1000  # twice as many change no level by 1e-5
GRID_REACH = 8.0  # standard deviations

Floats = NDArray[np.float64]


def look_sizes(queries: int) -> list[int]:
    """Return how many queries each look sees: twice as many each time, then all."""
    sizes = []
    size = FIRST_LOOK
    while size < 0.75 * queries:  # a last look at hardly more queries would only cost error
        sizes.append(size)
        size *= 2
    return [*sizes, queries]


def one_sided_levels(sizes: Sequence[int], alpha: float) -> list[float]:
    """Return a level for each look, so that together they err with probability `alpha`.

    `sizes` are the numbers of queries seen, of which the last is the largest possible.
    """
    levels: list[float] = []
    # Where the motion is, if it has crossed no bound so far, and with which probability.
    places = np.zeros(1)
    mass = np.ones(1)
    time_before = 0.0
    for size in sizes:
        time = size / sizes[-1]
        step_std = math.sqrt(time - time_before)
        std = math.sqrt(time)
        reach = GRID_REACH * std
        bound = _bound(places, mass, step_std, reach, alpha * (time - time_before))
        levels.append(float(stats.norm.sf(bound / std)))
        grid = np.linspace(-reach, bound, GRID_POINTS)
        weights = np.full(GRID_POINTS, grid[1] - grid[0])
        weights[[0, -1]] /= 2  # the trapezoid rule
        steps = (grid[:, None] - places) / step_std
        mass = weights * (stats.norm.pdf(steps) @ mass) / step_std
        places = grid
        time_before = time
    return levels


def _bound(places: Floats, mass: Floats, step_std: float, reach: float, error: float) -> float:
    """Find the bound that a step crosses with probability `error`."""

    def excess(bound: float) -> float:
        crossing = stats.norm.sf((bound - places) / step_std)
        return float(mass @ crossing) - error

    return float(optimize.brentq(excess, -reach, reach))
