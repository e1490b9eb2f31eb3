"""Instances of a UDF: how many there are, and how each opens its scorer."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import daft

from xopt.runtime.machine import cores
from xopt.runtime.scoring.device import claim_gpu

__all__ = ["Unscored", "instances", "opened"]

log = logging.getLogger(__name__)

Opened = TypeVar("Opened")


def opened(opener: Callable[[], Opened], alone: bool) -> tuple[Opened, float]:
    """What `opener` opens, `alone` on a GPU where there are several, and the seconds that it
    took.
    """
    start = time.monotonic()
    if alone:
        claim_gpu()
    return opener(), time.monotonic() - start


class Unscored:
    """Counts what has no score, and tells of the first, the tenth, the hundredth and so on."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, what: str, rows: int) -> None:
        """So many rows more have a null score, since they `what`."""
        before = self.counts[what]
        self.counts[what] = after = before + rows
        if len(str(after)) > len(str(before)) or (rows and not before):
            log.warning("rerank: %d rows of this worker %s; their scores are null", after, what)


def instances(kind: type[Any], workers: int | None, threads: int | None, device: str) -> Any:
    """A UDF class for Daft: one instance in this process, or `workers` processes that reserve
    `threads` CPUs each.
    """
    gpus = 1 if device == "cuda" else 0
    if workers is not None:
        return daft.cls(kind, max_concurrency=workers, cpus=threads, gpus=gpus)
    # All of the machine's cores for a call: exactly one instance in this process, one call at a
    # time.
    return daft.cls(kind, cpus=cores(), gpus=gpus)
