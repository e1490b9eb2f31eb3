"""Layouts of charts, in pixels, which `templates/charts.html` draws as SVG."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Box", "Point", "Scatter", "Strip", "frontier", "scatter", "sparkline", "strips"]

Place = tuple[float, float]
Line = tuple[Place, Place]

LEFT = 44
RIGHT = 16
TOP = 64  # for the axis's name, and two lines of names above the best points
BOTTOM = 44
RADIUS = 5  # of a point's circle
LETTER = 7.4  # the mean width of one in the widest of usual fonts, at 12 pixels
LINE = 16  # the height of a label
GAP = 4  # between a circle and its label
FOOT = 3  # from a label's end to the foot of its line
LEAST_HEIGHT = 360
HEIGHT_A_POINT = 22
FEWEST_LETTERS = 8
RINGS = 80  # half lines that a label may lie away from its point

SPEED_STEPS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
AGREEMENT_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
MOST_AGREEMENT_STEPS = 5
MOST_MOMENTS = 120  # in a sparkline


@dataclass(frozen=True)
class Point:
    """A case's speed in times the baseline, and its agreement, with an interval if it has one."""

    name: str
    speed: float
    agreement: float
    low: float | None = None
    high: float | None = None

    def beats(self, other: Point) -> bool:
        """Whether it is better in one of the two and no worse in the other."""
        if self.speed > other.speed:
            return self.agreement >= other.agreement
        return self.speed == other.speed and self.agreement > other.agreement


@dataclass(frozen=True)
class Box:
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two share a part."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def is_clear(self, others: Sequence[Box]) -> bool:
        """Whether it shares no part with any other."""
        return not any(self.meets(other) for other in others)

    def holds(self, other: Box) -> bool:
        """Whether the other lies within this one."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True)
class Mark:
    """A point's place and its label's, its interval, and the line to a label that is not beside."""

    point: Point
    best: bool
    place: Place
    label: Box
    text: str
    whisker: Line | None
    lead: Line | None


@dataclass(frozen=True)
class Scatter:
    """Agreement over speed. A tick is a value and its place on the axis."""

    width: float
    height: float
    marks: list[Mark]
    speed_ticks: list[tuple[float, float]]
    agreement_ticks: list[tuple[float, float]]
    frontier: list[Place]

    left = LEFT
    top = TOP
    bottom = BOTTOM
    right = RIGHT
    radius = RADIUS


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats, by rising speed."""

    def beaten(point: Point) -> bool:
        return any(other.beats(point) for other in points)

    best = [point for point in points if not beaten(point)]
    return sorted(best, key=lambda point: point.speed)


def scatter(points: Sequence[Point], width: float) -> Scatter:
    """Lay out a chart of at least one point, with a name at each, and no name on another."""
    height = max(LEAST_HEIGHT, HEIGHT_A_POINT * len(points) + TOP + BOTTOM)
    speeds = _speed_ticks(points)
    agreements = _agreement_ticks(points)
    best = frontier(points)

    def x_of(speed: float) -> float:
        return LEFT + RADIUS + speed / speeds[-1] * (width - LEFT - RIGHT - 2 * RADIUS)

    def y_of(agreement: float) -> float:
        down = (1 - agreement) / (1 - agreements[0])
        return TOP + RADIUS + min(down, 1.0) * (height - TOP - BOTTOM - 2 * RADIUS)

    def place_of(point: Point) -> Place:
        return x_of(point.speed), y_of(point.agreement)

    # From the right to the left, so that names below a row of points form a staircase.
    ordered = sorted(points, key=lambda point: -point.speed)
    places = [place_of(point) for point in ordered]
    whiskers = [_whisker(point, place_of(point)[0], y_of) for point in ordered]
    labels = _labels(places, ordered, Box(0, 0, width, height))
    marks = []
    for point, place, whisker, (label, text) in zip(ordered, places, whiskers, labels, strict=True):
        lead = _lead(place, label)
        marks.append(Mark(point, point in best, place, label, text, whisker, lead))
    return Scatter(
        width=width,
        height=height,
        marks=marks,
        speed_ticks=[(speed, x_of(speed)) for speed in speeds],
        agreement_ticks=[(agreement, y_of(agreement)) for agreement in agreements],
        frontier=[place_of(point) for point in best],
    )


def _whisker(point: Point, x: float, y_of: Callable[[float], float]) -> Line | None:
    """Return the line that shows a point's interval, None without one."""
    if point.low is None or point.high is None or point.low >= point.high:
        return None
    return (x, y_of(point.low)), (x, y_of(min(point.high, 1.0)))


def _speed_ticks(points: Sequence[Point]) -> list[float]:
    fastest = max(point.speed for point in points)
    step = next((step for step in SPEED_STEPS if fastest <= 7 * step), SPEED_STEPS[-1])
    return [i * step for i in range(int(fastest // step) + 2)]


def _agreement_ticks(points: Sequence[Point]) -> list[float]:
    lowest = min(point.agreement if point.low is None else point.low for point in points)
    lost = max(1 - lowest, 2 * AGREEMENT_STEPS[0])
    fitting = (step for step in AGREEMENT_STEPS if lost <= MOST_AGREEMENT_STEPS * step)
    step = next(fitting, AGREEMENT_STEPS[-1])
    steps = math.ceil(lost / step - 1e-9)
    return [1 - i * step for i in range(steps, -1, -1)]


def _labels(places: Sequence[Place], points: Sequence[Point], chart: Box) -> list[tuple[Box, str]]:
    """Find a place for each point's name, and cut those that are too long for the chart."""
    inside = Box(LEFT, LINE + 2, chart.right, chart.bottom - BOTTOM)
    longest = max(FEWEST_LETTERS, int((inside.right - inside.left) / 2 / LETTER))
    circles = [_around(place) for place in places]
    labels: list[Box] = []
    lines: list[Line] = []
    texts = []
    for place, point in zip(places, points, strict=True):
        text = point.name
        if len(text) > longest:
            text = text[: longest - 1] + "…"
        near = _boxes_near(place, len(text) * LETTER)
        boxes = [box for box in near if inside.holds(box)]
        free = [box for box in boxes if box.is_clear(labels + circles)]
        others = [circle for circle in circles if not circle.holds(Box(*place, *place))]
        label = _clearest(place, free or boxes, labels + others, lines)
        lead = _lead(place, label)
        labels.append(label)
        lines += [lead] if lead else []
        texts.append(text)
    return list(zip(labels, texts, strict=True))


def _clearest(
    place: Place, boxes: Sequence[Box], marks: Sequence[Box], lines: Sequence[Line]
) -> Box:
    """Return the first box where it and its line cross the fewest lines and marks."""
    fewest = math.inf
    clearest = boxes[0]
    for box in boxes:
        lead = _lead(place, box)
        crossed = sum(_crosses(line, box) for line in lines)
        if lead:
            crossed += sum(_crosses(lead, mark) for mark in marks)
        if crossed < fewest:
            fewest = crossed
            clearest = box
        if not crossed:
            break
    return clearest


def _boxes_near(place: Place, width: float) -> Iterator[Box]:
    """Yield places for a label: beside its point, then below and above it, the nearest first."""
    x, y = place
    near = RADIUS + GAP
    beside = (x + near, x - near - width)
    # To the right, and so clear of lines to points further left, as far as there is room.
    lefts = (x - FOOT, x + FOOT - width)
    places = [(y, left) for left in beside]
    places += [(y + down, beside[0]) for down in (LINE / 2, -LINE / 2)]
    for left, ring in itertools.product(lefts, range(2, RINGS)):
        places += [(y + ring * LINE / 2, left), (y - ring * LINE / 2, left)]
    for middle, left in places:
        yield Box(left, middle - LINE / 2, left + width, middle + LINE / 2)


def _lead(place: Place, label: Box) -> Line | None:
    """Return the line from a point to its label, None where they are side by side."""
    x, y = place
    to_x = min(max(x, label.left), label.right)
    to_y = min(max(y, label.top), label.bottom)
    distance = math.dist(place, (to_x, to_y))
    if distance <= RADIUS + GAP:
        return None
    start = RADIUS / distance
    return (x + (to_x - x) * start, y + (to_y - y) * start), (to_x, to_y)


def _crosses(line: Line, box: Box) -> bool:
    """Whether a part of the line lies within the box (Liang and Barsky 1984)."""
    (x, y), (to_x, to_y) = line
    enters = 0.0
    leaves = 1.0
    for start, end, low, high in ((x, to_x, box.left, box.right), (y, to_y, box.top, box.bottom)):
        if start == end:
            if not low < start < high:
                return False
            continue
        ends = sorted(((low - start) / (end - start), (high - start) / (end - start)))
        enters = max(enters, ends[0])
        leaves = min(leaves, ends[1])
    return enters < leaves


def _around(place: Place) -> Box:
    x, y = place
    reach = RADIUS + 2
    return Box(x - reach, y - reach, x + reach, y + reach)


@dataclass(frozen=True)
class Strip:
    """A mean, its interval and a bound, in per cent of the axis."""

    low: float
    mean: float
    high: float
    bound: float


def strips(
    intervals: Sequence[tuple[float, float, float]], bound: float
) -> tuple[list[Strip], float, float]:
    """Lay out intervals, each low, mean and high, on one axis; and return its ends."""
    values = [bound, *itertools.chain.from_iterable(intervals)]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    start = min(values) - margin
    end = max(values) + margin

    def at(value: float) -> float:
        return 100 * (value - start) / (end - start)

    found = [Strip(at(low), at(mean), at(high), at(bound)) for low, mean, high in intervals]
    return found, start, end


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
