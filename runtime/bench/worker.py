"""Starting a bench worker, talking with it, and ending it with all that it started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from xopt.runtime.errors import BadInput

__all__ = ["Worker", "started"]


@dataclass(frozen=True)
class Worker:
    """A process of `xopt.runtime.bench.worker_main`, and how to talk with it."""

    process: subprocess.Popen[str]
    errors: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def open(self, case: dict[str, Any]) -> None:
        """Have it open and warm up the model of a case.

        Raises BadInput where the case cannot run, RuntimeError where the process died.
        """
        self._say(case)
        self._hear("ready")

    def run(self) -> dict[str, Any]:
        """Have it run the case: scores, calls and times, see `worker_main.opened`. Raises as
        `open` does.
        """
        self._say({})
        return self._hear("done")

    def _say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def _hear(self, event: str) -> dict[str, Any]:
        """Wait for its message of this event."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else {"event": "died"}
        if message["event"] == "bad_input":
            raise BadInput(message["message"])
        if message["event"] != event:
            tail = "\n".join(
                self.errors.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            )
            raise RuntimeError(f"the bench's worker stopped before it was {event}:\n{tail}")
        return message


@contextmanager
def started(threads: int) -> Iterator[Worker]:
    """A fresh bench worker whose libraries may use `threads`; it and all that it started end with
    the block.
    """
    quiet = {"DAFT_PROGRESS_BAR": "0", "DO_NOT_TRACK": "1", "RAYON_NUM_THREADS": str(threads)}
    with tempfile.NamedTemporaryFile("w", prefix="xopt-bench-", suffix=".err") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "xopt.runtime.bench.worker_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **quiet},
        )
        try:
            yield Worker(process, Path(errors.name))
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the worker and all that it started."""
    try:
        tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        tree = []
    for member in tree:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
