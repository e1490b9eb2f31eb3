"""Plans forwards: which pairs run together, padded to which width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.folder import Plan

__all__ = [
    "ROWS_A_CALL",
    "WIDTH_STEP",
    "Forward",
    "default_plan",
    "is_long",
    "plan_forwards",
]

# Pairs worth giving a scorer at once: it sorts them by length, and they fill many forwards.
# A GPU needs more of them to be kept busy.
ROWS_A_CALL = {"cpu": 1024, "cuda": 16384}
# Widths are multiples of this: memory grows with each new shape.
WIDTH_STEP = 8
# Attention's scores are pairs x heads x width^2 numbers, and runtimes hold them about twice.
# For a pair of 2,048 tokens and 12 heads that is 400 MB.
MOST_SQUARED_TOKENS = 2048**2


def is_long(pairs: int, width: int) -> bool:
    """Return whether a forward takes so much memory that none like it may run beside it."""
    return pairs * width**2 > MOST_SQUARED_TOKENS


@dataclass(frozen=True)
class Forward:
    """The rows that run together, and the width in tokens that they are padded to."""

    rows: NDArray[np.intp]
    width: int

    @property
    def is_long(self) -> bool:
        return is_long(len(self.rows), self.width)


def plan_forwards(
    lengths: NDArray[np.integer], tokens: int, max_width: int, step: int = 0
) -> list[Forward]:
    """Cut pairs, sorted by length, into forwards of at most `tokens` padded tokens.

    `lengths`, int[pairs], are at most `max_width`, the model's length.
    A pair longer than `tokens` gets a forward of its own. If it is long it is not padded either:
    torch would make a mask of its squared tokens.
    With a `step`, widths are multiples of it, and only pairs of the same width run together.
    With 1 nothing is padded. With more, the rest of a width runs pair by pair: two shapes a width.

    Small forwards stay in a CPU's cache and near-equal lengths need little padding.
    Both count more there than the size of a batch.
    The longest come first, which evens out concurrent callers.
    """
    multiple = step or WIDTH_STEP
    widths = np.minimum(-(-lengths // multiple) * multiple, max_width)
    order = np.argsort(-lengths, kind="stable")
    rising = -widths[order]  # as searchsorted needs it
    forwards = []
    start = 0
    while start < len(order):
        width = -int(rising[start])
        stop = start + max(1, tokens // width)
        if step:
            end_of_width = int(np.searchsorted(rising, -width, side="right"))
            if step == 1:
                stop = min(stop, end_of_width)
            elif stop > end_of_width:
                stop = start + 1
        if not step and stop == start + 1 and is_long(1, width):
            width = int(lengths[order[start]])
        forwards.append(Forward(order[start:stop], width))
        start = stop
    return forwards


def default_plan(backend: str, threads: int, device: str = "cpu") -> Plan:
    """Return a plan for a machine without a tuned one, near the best on small machines.

    On a GPU its threads tokenise ahead.
    """
    if device == "cuda":
        return Plan(callers=1, threads=2, tokens=65536)
    if backend == "torch":
        return Plan(callers=1, threads=threads, tokens=1024)
    return Plan(callers=threads, threads=1, tokens=512)
