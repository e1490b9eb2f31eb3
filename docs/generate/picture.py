"""docs/speed.svg: the speed of each case inside Daft, as bars."""

from __future__ import annotations

from html import escape

from results import Run

WIDTH = 760
BAR_LEFT = 350
LONGEST_BAR = 340
ROW_HEIGHT = 34
TITLE = "Pairs per second inside a Daft UDF, beside sentence-transformers as it comes"
OURS = "#1a7f37"
THEIRS = "#8c959f"
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
 aria-labelledby="title" font-family="sans-serif" font-size="14">
<title id="title">{title}: {figures}</title>
<rect width="{width}" height="{height}" fill="#ffffff"/>
<text x="16" y="26" fill="#1f2328" font-weight="bold">{title}</text>"""
BAR = """<text x="{name_right}" y="{baseline}" text-anchor="end" fill="#1f2328">{name}</text>
<rect x="{left}" y="{top}" width="{width}" height="24" rx="3" fill="{color}"/>
<text x="{figure_left}" y="{baseline}" fill="#1f2328">{ratio:.1f} x</text>"""


def drawn(run: Run, names: dict[str, str]) -> str:
    """Return the picture of a run's cases, the slowest first."""
    measured = sorted(run.result["bench"]["measured"], key=lambda each: each["ratio"])
    longest = measured[-1]["ratio"]
    figures = []
    bars = []
    for number, each in enumerate(measured):
        case = f"{each['case']['variant']}/{each['case']['strategy']}"
        name = names[case].partition(" (")[0]  # what stands behind it is in the table
        figures.append(f"{name} {each['ratio']:.1f} times")
        top = 44 + ROW_HEIGHT * number
        width = round(LONGEST_BAR * each["ratio"] / longest)
        bar = BAR.format(
            name=escape(name),
            name_right=BAR_LEFT - 10,
            left=BAR_LEFT,
            top=top,
            baseline=top + 17,
            width=width,
            figure_left=BAR_LEFT + width + 8,
            color=OURS if case.endswith("/planned") else THEIRS,
            ratio=each["ratio"],
        )
        bars.append(bar)
    head = HEAD.format(
        width=WIDTH,
        height=52 + ROW_HEIGHT * len(measured),
        title=TITLE,
        figures=escape(", ".join(figures)),
    )
    return "\n".join([head, *bars, "</svg>", ""])
