"""What is made once for all workers of pytest-xdist, and what runs in this process in place of one of its own."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from filelock import FileLock

from xopt.runtime.bench.worker_main import opened

Made = TypeVar("Made")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What `make` makes in a folder of this name, which the first worker to ask has made for all."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder in that of the run
    place = root / f"once-{name}"
    kept = place / "made.pickle"
    with FileLock(f"{place}.lock"):
        if not kept.is_file():
            place.mkdir()
            kept.write_bytes(pickle.dumps(make(place)))
    made: Made = pickle.loads(kept.read_bytes())
    return made


@dataclass
class SameProcess:
    """Runs a case of the bench in this process, as `xopt.runtime.bench.worker.Worker` does in a fresh one."""

    pid: int = field(default_factory=os.getpid)

    def open(self, case: dict[str, Any]) -> None:
        self._run = opened(json.loads(json.dumps(case)))

    def run(self) -> dict[str, Any]:
        return self._run()


@contextmanager
def same_process(threads: int) -> Iterator[SameProcess]:
    """In place of `xopt.runtime.bench.worker.started`: no process to start, and no libraries to import again."""
    yield SameProcess()
