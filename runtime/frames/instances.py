"""What UDFs have in common: their instances, and the rows that they cannot score."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import daft

from xopt.runtime.machine import cores
from xopt.runtime.scoring.device import claim_gpu

__all__ = ["NullScores", "make_udf", "open_timed"]

log = logging.getLogger(__name__)

Opened = TypeVar("Opened")


def open_timed(opener: Callable[[], Opened], own_gpu: bool) -> tuple[Opened, float]:
    """Open a scorer, on a GPU of its own where asked. Returns it and the seconds."""
    start = time.monotonic()
    if own_gpu:
        claim_gpu()
    scorer = opener()
    return scorer, time.monotonic() - start


class NullScores:
    """Counts rows without a score, and warns of the first, the tenth and so on."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, rows: int, reason: str) -> None:
        """Count so many rows more, whose reason is such as "have a null text"."""
        before = self.counts[reason]
        after = before + rows
        self.counts[reason] = after
        if after and (not before or len(str(after)) > len(str(before))):
            log.warning(
                "rerank: %d rows of this worker %s; their scores are null",
                after,
                reason,
            )


def make_udf(
    kind: type[Any],
    workers: int | None,
    threads: int | None,
    device: str,
) -> Any:
    """Make a UDF class for Daft: one instance, or one in each of `workers` processes.

    A worker reserves `threads` CPUs, and an instance on "cuda" a GPU.
    """
    gpus = 1 if device == "cuda" else 0
    if workers is not None:
        return daft.cls(kind, max_concurrency=workers, cpus=threads, gpus=gpus)
    # A call that reserves all cores runs alone, so that Daft makes a single instance.
    return daft.cls(kind, cpus=cores(), gpus=gpus)
