"""A worker of the bench that is this process: nothing to start, and no libraries to import
again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from xopt.runtime.bench.worker_main import opened


class SameProcess:
    """Runs a case of the bench here, as `xopt.runtime.bench.worker.Worker` does in a fresh
    process.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()

    def open(self, case: dict[str, Any]) -> None:
        self.run = opened(json.loads(json.dumps(case)))  # as it comes out of a pipe


@contextmanager
def same_process(threads: int) -> Iterator[SameProcess]:
    """In place of `xopt.runtime.bench.worker.started`."""
    yield SameProcess()
