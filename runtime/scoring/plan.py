"""Planning forwards: which pairs run together, padded to which width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.folder import Plan

__all__ = ["ROWS_A_CALL", "WIDTH_STEP", "Forward", "default_plan", "plan_forwards"]

# Pairs worth giving a scorer at once: many forwards long, since pairs are sorted by length within
# a call. A GPU needs more of them to be kept busy.
ROWS_A_CALL = {"cpu": 1024, "cuda": 16384}
# widths are multiples of this: few distinct shapes, so that memory does not grow with each
WIDTH_STEP = 8


@dataclass(frozen=True)
class Forward:
    """The rows that run together and the width, in tokens, that they are padded to."""

    rows: NDArray[np.intp]
    width: int


def plan_forwards(
    lengths: NDArray[np.integer], tokens: int, max_width: int, step: int = 0
) -> list[Forward]:
    """Cut pairs, sorted by length, into forwards of at most `tokens` padded tokens, longest first.

    `lengths` holds a pair's tokens each, at most `max_width`, the model's length. A pair longer
    than `tokens` has a forward of its own. With a `step` only pairs run together whose lengths
    have the same next multiple of it: with 1, those of one length, and nothing is padded; above
    that, what is left over of a width runs pair by pair, so that there are two shapes a width and
    no more. Small forwards stay in the processor's cache and near-equal lengths need little
    padding: both count more on a CPU than the size of a batch. Longest first evens out concurrent
    callers.
    """
    every = step or WIDTH_STEP
    widths = np.minimum(-(-lengths // every) * every, max_width)
    order = np.argsort(-lengths, kind="stable")
    falling = -widths[order]
    forwards, start = [], 0
    while start < len(order):
        width = -int(falling[start])
        full = max(1, tokens // max(1, width))
        stop = start + full
        if step:
            alike = int(np.searchsorted(falling, -width, side="right"))
            stop = min(stop, alike) if step == 1 or stop <= alike else start + 1
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
