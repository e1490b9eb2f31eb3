"""Planning forwards: which pairs run together, padded to which width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.folder import Plan

__all__ = ["ROWS_A_CALL", "WIDTH_STEP", "Forward", "default_plan", "plan_forwards"]

# Pairs worth giving a scorer at once: many forwards long, since pairs are sorted by length within a call. A GPU needs
# more of them to be kept busy.
ROWS_A_CALL = {"cpu": 1024, "cuda": 16384}
WIDTH_STEP = 8  # widths are multiples of this: few distinct shapes, so that memory does not grow with each


@dataclass(frozen=True)
class Forward:
    """The rows that run together and the width, in tokens, that they are padded to."""

    rows: NDArray[np.intp]
    width: int


def plan_forwards(lengths: NDArray[np.integer], tokens: int, max_width: int, equal: bool = False) -> list[Forward]:
    """Cut pairs, sorted by length, into forwards of at most `tokens` padded tokens, longest first.

    `lengths` holds a pair's tokens each, at most `max_width`, the model's length. A pair longer than
    `tokens` has a forward of its own. With `equal` only pairs of one length run together, and nothing is padded.
    Small forwards stay in the processor's cache and near-equal lengths need little padding: both
    count more on a CPU than the size of a batch. Longest first evens out concurrent callers.
    """
    order = np.argsort(-lengths, kind="stable")
    falling = -lengths[order]
    forwards, start = [], 0
    while start < len(order):
        length = -int(falling[start])
        width = length if equal else min(-(-length // WIDTH_STEP) * WIDTH_STEP, max_width)
        stop = start + max(1, tokens // max(1, width))
        if equal:
            stop = min(stop, int(np.searchsorted(falling, -length, side="right")))
        forwards.append(Forward(order[start:stop], width))
        start = stop
    return forwards


def default_plan(backend: str, threads: int, device: str = "cpu") -> Plan:
    """A plan for a machine that has not been tuned: measured to be near the best on small machines.

    On a GPU `threads` of a plan are tokenising calls ahead of it.
    """
    if device == "cuda":
        return Plan(callers=1, threads=2, tokens=65536)
    if backend == "torch":
        return Plan(callers=1, threads=threads, tokens=1024)
    return Plan(callers=threads, threads=1, tokens=512)
