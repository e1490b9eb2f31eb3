"""Fresh processes that run a case of the bench each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from xopt.runtime.errors import BadInput

__all__ = ["Worker", "started"]

ERROR_LINES = 20


@dataclass(frozen=True)
class Worker:
    """A process of `xopt.runtime.bench.worker_main`, and the file of its standard error."""

    process: subprocess.Popen[str]
    errors: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def open(self, case: dict[str, Any]) -> None:
        """Send the process a case, whose model it opens and warms up."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()

    def run(self) -> dict[str, Any]:
        """Return the result of the case, as `worker_main.opened` describes it.

        Raises BadInput where the case cannot run, RuntimeError where the process died.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            errors = self.errors.read_text(encoding="utf-8", errors="replace").splitlines()
            tail = "\n".join(errors[-ERROR_LINES:])
            raise RuntimeError(f"the bench's worker died:\n{tail}")
        result: dict[str, Any] = json.loads(line)
        if "bad_input" in result:
            raise BadInput(result["bad_input"])
        return result


@contextmanager
def started(threads: int) -> Iterator[Worker]:
    """Yield a fresh worker whose libraries may use `threads`, and end it with all it started."""
    settings = {"DAFT_PROGRESS_BAR": "0", "DO_NOT_TRACK": "1", "RAYON_NUM_THREADS": str(threads)}
    with tempfile.NamedTemporaryFile("w", prefix="xopt-bench-", suffix=".err") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "xopt.runtime.bench.worker_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **settings},
        )
        try:
            yield Worker(process, Path(errors.name))
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for member in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
