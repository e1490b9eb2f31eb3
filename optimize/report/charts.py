"""Coordinates of charts, which `templates/charts.html` draws as SVG."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Point", "Scatter", "frontier", "scatter", "sparkline"]

Place = tuple[float, float]

# In pixels. The chart is as wide as a phone, so that its letters are large enough on one.
WIDTH = 380
HEIGHT = 280
LEFT = 44
RIGHT = 14
TOP = 14
BOTTOM = 40
RADIUS = 9  # of a point's circle
SPACING = 2 * RADIUS + 2  # between the centres of two circles

SPEED_STEPS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
MOST_MOMENTS = 120  # in a sparkline


@dataclass(frozen=True)
class Point:
    """A case's speed in times the baseline, and its top-10 overlap."""

    name: str
    speed: float
    agreement: float

    def beats(self, other: Point) -> bool:
        """Whether it is better in one of the two and no worse in the other."""
        if self.speed > other.speed:
            return self.agreement >= other.agreement
        return self.speed == other.speed and self.agreement > other.agreement


@dataclass(frozen=True)
class Mark:
    """A point's place, and its circle, which makes room for others."""

    point: Point
    best: bool
    place: Place
    circle: Place


@dataclass(frozen=True)
class Scatter:
    """Agreement over speed. A tick is a value and its place on the axis."""

    marks: list[Mark]
    speed_ticks: list[tuple[float, float]]
    agreement_ticks: list[tuple[float, float]]
    frontier: list[Place]

    width = WIDTH
    height = HEIGHT
    left = LEFT
    right = WIDTH - RIGHT
    radius = RADIUS


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, by rising speed."""

    def beaten(point: Point) -> bool:
        return any(other.beats(point) for other in points)

    best = [point for point in points if not beaten(point)]
    return sorted(best, key=lambda point: point.speed)


def scatter(points: Sequence[Point]) -> Scatter:
    """Lay out a chart of at least one point."""
    fastest = max(point.speed for point in points)
    step = next((step for step in SPEED_STEPS if fastest <= 8 * step), SPEED_STEPS[-1])
    intervals = int(fastest // step) + 1
    lowest = min(point.agreement for point in points)
    agreement_step = 0.05 if lowest > 0.5 else 0.1
    bottom = min(0.9, lowest // agreement_step * agreement_step)

    def x_of(speed: float) -> float:
        return LEFT + speed / (intervals * step) * (WIDTH - LEFT - RIGHT)

    def y_of(agreement: float) -> float:
        down = (1 - agreement) / (1 - bottom)
        return TOP + RADIUS + down * (HEIGHT - TOP - BOTTOM - 2 * RADIUS)

    def place(point: Point) -> Place:
        return x_of(point.speed), y_of(point.agreement)

    best = frontier(points)
    marks: list[Mark] = []
    for point in points:
        circle = _free_place(place(point), [mark.circle for mark in marks])
        marks.append(Mark(point, point in best, place(point), circle))
    speeds = [i * step for i in range(intervals + 1)]
    agreements = [bottom + i * (1 - bottom) / 5 for i in range(6)]
    return Scatter(
        marks=marks,
        speed_ticks=[(speed, x_of(speed)) for speed in speeds],
        agreement_ticks=[(agreement, y_of(agreement)) for agreement in agreements],
        frontier=[place(point) for point in best],
    )


def _free_place(wanted: Place, taken: Sequence[Place]) -> Place:
    """Find a place near the wanted one where a circle lies on no other."""
    x, y = wanted
    steps = itertools.product(range(12), (0, -1, 1, -2, 2))
    places = [(x + across * SPACING, y + down * SPACING) for down, across in steps]
    inside = [place for place in places if _inside(place)]
    for place in inside:
        if all(math.dist(place, other) >= SPACING for other in taken):
            return place
    return inside[0] if inside else wanted


def _inside(place: Place) -> bool:
    x, y = place
    return (
        LEFT + RADIUS <= x <= WIDTH - RIGHT - RADIUS
        and TOP + RADIUS <= y <= HEIGHT - BOTTOM - RADIUS
    )


def sparkline(values: Sequence[float]) -> list[Place]:
    """Lay out shares over time, from 0 to 1, on 100 x 32 pixels.

    More than `MOST_MOMENTS` values are averaged. Fewer than two make no line.
    """
    size = max(1, math.ceil(len(values) / MOST_MOMENTS))
    means = [statistics.fmean(values[i : i + size]) for i in range(0, len(values), size)]
    if len(means) < 2:
        return []
    step = 100 / (len(means) - 1)
    return [(i * step, 30 - 28 * min(mean, 1.0)) for i, mean in enumerate(means)]
