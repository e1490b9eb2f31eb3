"""What `xopt rerank` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xopt.cli.output import Output
from xopt.runtime.jobs.progress import clock

if TYPE_CHECKING:
    from xopt.runtime.jobs.rerank_files import Preview, Reranked

__all__ = ["print_preview", "print_reranked"]


def print_preview(output: Output, seen: Preview) -> None:
    """What a job would do."""
    output.line(
        f"{_count(seen.rows, 'pair')} of {_count(len(seen.inputs), 'input')}, by {seen.variant}, to {seen.out}"
    )
    output.line(f"in {_count(seen.parts, 'part')}, each of which is written whole or not at all")
    if seen.gathered:
        output.line(
            f"{seen.gathered:,} rows are of queries whose candidates lie apart: they are written together first"
        )
    if seen.rows_left < seen.rows:
        output.line(f"{seen.rows - seen.rows_left:,} pairs are done")
    output.line(
        f"{seen.pairs_s:,.0f} pairs a second in a sample, with one instance: {clock(seen.seconds)} to go"
    )


def print_reranked(output: Output, made: Reranked) -> None:
    """What a job made."""
    counts = made.counts
    output.line(f"{made.out}: {counts.written:,} rows of {counts.rows:,} pairs, by {made.variant}")
    columns = [
        "pairs",
        "scored",
        "null text",
        "not finite",
        "left out",
        "cut",
        "tokens",
        "seconds",
        "pairs/s",
    ]
    whole = made.parts_now == made.parts
    cells = []
    for name, each, timed in (
        [("all", counts, True)] if whole else [("all", counts, False), ("now", made.now, True)]
    ):
        values = (
            each.rows,
            each.scored,
            each.null,
            each.not_finite,
            each.skipped,
            each.cut,
            each.tokens,
        )
        rate = f"{each.rows / made.seconds:,.0f}" if each.rows else ""
        took = [f"{made.seconds:,.1f}", rate] if timed else ["", ""]
        cells.append([name, *(f"{value:,}" for value in values), *took])
    output.table("", ["", *columns], cells)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
