from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xopt.optimize.report.charts import (
    LETTER,
    RADIUS,
    Box,
    Point,
    Scatter,
    frontier,
    scatter,
    sparkline,
    strips,
)

WIDTHS = (560, 368)
VARIANTS = (
    "torch-fp32",
    "torch-bf16",
    "onnx-fp32",
    "onnx-int8",
    "onnx-int8-portable",
    "openvino-int8",
    "st-openvino-qint8",
    "ct2-int8",
)
PEERS = [  # most of FP32's overlap, and near each other in speed
    Point(f"{variant}/{strategy}", 0.6 + 0.11 * i + 0.07 * j, 1.0 if i < 3 else 1 - 0.02 * i)
    for i, variant in enumerate(VARIANTS)
    for j, strategy in enumerate(("default", "batch-8", "planned"))
][:20]


def check_labels(chart: Scatter) -> None:
    """All labels lie inside, wide enough for their text, and on no other label or circle."""
    inside = Box(0, 0, chart.width, chart.height)
    circles = []
    for mark in chart.marks:
        x, y = mark.place
        circles.append(Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS))
    for mark in chart.marks:
        assert inside.holds(mark.label), mark
        assert mark.label.right - mark.label.left >= LETTER * len(mark.text) - 1e-9
        assert not any(mark.label.meets(circle) for circle in circles), mark
    for one, other in itertools.combinations(chart.marks, 2):
        assert not one.label.meets(other.label), (one, other)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "points",
    [
        [Point("torch-fp32/default", 1.0, 1.0)],
        [Point(f"torch-fp32/case-{i}", 1.0, 1.0) for i in range(9)],  # all at one place
        PEERS,
        [*PEERS, Point("onnx-int8-of-a-name-longer-than-any-phone-is-wide", 9.0, 0.12)],
    ],
)
def test_no_label_lies_on_another(points: list[Point], width: float) -> None:
    chart = scatter(points, width)
    check_labels(chart)
    assert {mark.point for mark in chart.marks} == set(points)
    for mark in chart.marks:
        assert mark.text == mark.point.name or mark.point.name.startswith(mark.text[:-1])


@given(
    st.lists(
        st.builds(
            Point,
            name=st.text("abcdefgh-/", min_size=1, max_size=40),
            speed=st.floats(0.05, 40),
            agreement=st.floats(0, 1),
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(WIDTHS),
)
def test_no_label_lies_on_another_wherever_the_points_are(
    points: list[Point], width: float
) -> None:
    check_labels(scatter(points, width))


def test_the_frontier_holds_what_nothing_else_beats() -> None:
    points = [
        Point("slow", 1.0, 1.0),
        Point("fast", 3.0, 0.95),
        Point("beaten", 2.0, 0.9),
        Point("twin", 3.0, 0.95),
    ]
    assert [point.name for point in frontier(points)] == ["slow", "fast", "twin"]
    chart = scatter(points, 560)
    assert {mark.point.name: mark.best for mark in chart.marks} == {
        "slow": True,
        "fast": True,
        "beaten": False,
        "twin": True,
    }
    assert [speed for speed, _ in chart.speed_ticks] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    agreements = [round(agreement, 2) for agreement, _ in chart.agreement_ticks]
    assert agreements == [0.9, 0.92, 0.94, 0.96, 0.98, 1.0]


def test_an_interval_is_drawn_within_the_chart() -> None:
    chart = scatter([Point("few queries", 2.0, 0.9, 0.6, 1.0), Point("same", 1.0, 1.0)], 560)
    whiskers = {mark.point.name: mark.whisker for mark in chart.marks}
    assert whiskers["same"] is None
    (_, low), (_, high) = whiskers["few queries"] or ((0, 0), (0, 0))
    assert chart.height - chart.bottom >= low > high >= chart.top


def test_intervals_of_a_gate_share_an_axis_with_its_bound() -> None:
    found, start, end = strips([(0.9, 0.95, 1.0), (0.4, 0.5, 0.6)], 0.93)
    assert start < 0.4
    assert end > 1.0
    assert found[0].bound == found[1].bound
    places = [found[1].low, found[1].mean, found[1].high, found[0].low, found[0].bound]
    assert places == sorted(places)
    same, start, end = strips([(1.0, 1.0, 1.0)], 1.0)
    assert (same[0].mean, same[0].bound) == (50, 50)
    assert strips([], 0.9)[0] == []


def test_a_sparkline_averages_what_is_too_much_for_it() -> None:
    assert sparkline([]) == sparkline([0.5]) == []
    assert sparkline([0.0, 0.5, 1.5]) == [(0, 30), (50, 16), (100, 2)]
    assert len(sparkline([0.5] * 1000)) <= 120
