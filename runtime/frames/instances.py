"""Instances of a UDF: how many there are, and how each opens its scorer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import daft

from xopt.runtime.machine import cores
from xopt.runtime.scoring.device import claim_gpu

__all__ = ["instances", "opened"]

Opened = TypeVar("Opened")


def opened(opener: Callable[[], Opened], alone: bool) -> tuple[Opened, float]:
    """What `opener` opens, `alone` on a GPU where there are several, and the seconds that it took."""
    start = time.monotonic()
    if alone:
        claim_gpu()
    return opener(), time.monotonic() - start


def instances(kind: type[Any], workers: int | None, threads: int | None, device: str) -> Any:
    """A UDF class for Daft: one instance in this process, or `workers` processes that reserve `threads` CPUs each."""
    gpus = 1 if device == "cuda" else 0
    if workers is not None:
        return daft.cls(kind, max_concurrency=workers, cpus=threads, gpus=gpus)
    # All of the machine's cores for a call: exactly one instance in this process, one call at a time.
    return daft.cls(kind, cpus=cores(), gpus=gpus)
