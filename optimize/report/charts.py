"""Pictures for reports: SVG that takes its colours from the page, so that it follows dark and
light.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup, escape

__all__ = ["frontier", "scatter", "sparkline"]

Point = tuple[str, float, float]  # name, speed, agreement

WIDTH, HEIGHT = 380, 280  # as wide as a phone, so that letters are large enough on one
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 14, 40
RADIUS = 9
MOMENTS = 120  # of a timeline, at most


def frontier(points: Sequence[Point]) -> list[int]:
    """The points that no other one beats in speed and agreement, by speed."""
    best = [
        i
        for i, (_, x, y) in enumerate(points)
        if not any((a >= x and b > y) or (a > x and b >= y) for _, a, b in points)
    ]
    return sorted(best, key=lambda i: points[i][1])


def scatter(points: Sequence[Point], best: Sequence[int]) -> Markup:
    """Speed to the right, agreement upwards, points by number, the frontier joined and filled."""
    fastest, lowest = max(x for _, x, _ in points), min(y for *_, y in points)
    x_step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 1e9) if fastest / step <= 8)
    bottom = min(0.9, max(0.0, lowest // 0.05 * 0.05 if lowest > 0.5 else lowest // 0.1 * 0.1))
    right, y_step = (fastest // x_step + 1) * x_step, (1 - bottom) / 5

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + x / right * (WIDTH - LEFT - RIGHT),
            TOP + RADIUS + (1 - y) / (1 - bottom) * (HEIGHT - TOP - BOTTOM - 2 * RADIUS),
        )

    parts = []
    for i in range(6):
        value = bottom + i * y_step
        y = place(0, value)[1]
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for i in range(round(right / x_step) + 1):
        x = place(i * x_step, 1)[0]
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{i * x_step:g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 5}" text-anchor="middle">times the baseline</text>'
    )
    spots = _apart([place(x, y) for _, x, y in points])
    line = [place(points[i][1], points[i][2]) for i in best]
    parts += [f'<path class="frontier" d="{_path(line)}"/>'] if len(line) > 1 else []
    for i, ((name, x, y), (cx, cy)) in enumerate(zip(points, spots, strict=True)):
        px, py = place(x, y)
        parts.append(
            f'<line class="lead" x1="{px:.1f}" y1="{py:.1f}" x2="{cx:.1f}" y2="{cy:.1f}"/>'
        )
        kind = "best" if i in best else "other"
        parts.append(
            f'<g class="{kind}"><title>{escape(name)}: {x:.2f} times, {y:.3f}</title>'
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{RADIUS}"/>'
            f'<text x="{cx:.1f}" y="{cy + 4:.1f}" text-anchor="middle">{i + 1}</text></g>'
        )
    said = "; ".join(
        f"{escape(name)}: {x:.2f} times the baseline, top-10 {y:.3f}" for name, x, y in points
    )
    return Markup(
        f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Speed against agreement. {said}">'
        f"{''.join(parts)}</svg>"
    )


def _apart(wanted: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Places for numbered circles near the wanted ones, none on another and all within the axes."""
    taken: list[tuple[float, float]] = []
    gap = 2 * RADIUS + 2
    for x, y in wanted:
        tries = [(x + dx * gap, y + dy * gap) for dy in range(12) for dx in (0, -1, 1, -2, 2)]
        inside = [
            (a, b)
            for a, b in tries
            if LEFT + RADIUS <= a <= WIDTH - RIGHT - RADIUS
            and TOP + RADIUS <= b <= HEIGHT - BOTTOM - RADIUS
        ]
        free = [
            (a, b)
            for a, b in inside
            if all((a - c) ** 2 + (b - d) ** 2 >= gap**2 for c, d in taken)
        ]
        taken.append((free or inside or [(x, y)])[0])
    return taken


def sparkline(tree: Sequence[float], parent: Sequence[float]) -> Markup:
    """Two lines from 0 to 1 over time, of the process tree and of the parent alone; the page says
    what they are.
    """
    paths = []
    for kind, values in (("tree", tree), ("parent", parent)):
        if len(values) > 1:
            step = -(-len(values) // MOMENTS)
            means = [
                sum(values[i : i + step]) / len(values[i : i + step])
                for i in range(0, len(values), step)
            ]
            line = [
                (100 * i / (len(means) - 1), 30 - 28 * min(v, 1.0)) for i, v in enumerate(means)
            ]
            paths.append(f'<path class="{kind}" d="{_path(line)}"/>' if len(means) > 1 else "")
    return Markup(
        '<svg class="sparkline" viewBox="0 0 100 32" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="grid" x1="0" x2="100" y1="2" y2="2"/><line class="grid" x1="0" x2="100" y1="30" y2="30"/>'
        f"{''.join(paths)}</svg>"
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *_ = points
    return f"M{x:.1f} {y:.1f}" + "".join(f"L{b[0]:.1f} {b[1]:.1f}" for _, b in pairwise(points))
