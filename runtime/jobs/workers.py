"""Parts are done by processes or by the nodes of a Ray cluster, through Daft."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")  # read by daft as it is imported

import daft
import psutil
import pyarrow as pa
from daft import DataType, col

from xopt.runtime.errors import BadInput, GateFailed, first_line
from xopt.runtime.frames.instances import make_udf
from xopt.runtime.jobs.inputs.parts import Part
from xopt.runtime.jobs.score import Assignment, PartScorer
from xopt.runtime.scoring.device import claim_gpu

__all__ = ["do_parts", "start_ray"]

log = logging.getLogger(__name__)

TRIES = 3  # in a row without a part done
STRETCHES = 8  # a worker: parts that follow each other read a file once
LOOK_S = 1.0
CONNECT_S = 10.0


class PartsUDF:
    """Does parts, one after the other; its answer is what went wrong that a user can mend."""

    def __init__(self, assignment: Assignment, claims_gpu: bool) -> None:
        self.assignment = assignment
        self.claims_gpu = claims_gpu
        self.scorer: PartScorer | None = None

    @daft.method.batch(return_dtype=DataType.string())
    def do(self, parts: daft.Series) -> pa.Array:
        """For each part nothing, or why it could not be done."""
        return pa.array([self._one(json.loads(part)) for part in parts.to_pylist()], pa.string())

    def _one(self, part: dict[str, Any]) -> str:
        try:
            if self.scorer is None:
                if self.claims_gpu:
                    claim_gpu()
                self.scorer = PartScorer(self.assignment)
            self.scorer.do(Part(part["number"], tuple(map(tuple, part["slices"]))))
        except (BadInput, GateFailed) as error:
            return str(error)
        return ""


def do_parts(
    assignment: Assignment,
    parts: Sequence[Part],
    workers: int,
    cpus: int | None,
    left: Callable[[Sequence[Part]], list[Part]],
    progress: Callable[[], None],
) -> None:
    """Do parts with so many workers, which reserve so many CPUs each.

    `left` says which of some parts are not done yet; `progress` is called every second. Where a
    worker or a node dies, the others' parts are kept and the rest is begun again. Raises BadInput
    where a part cannot be done, or where that happens without an end.
    """
    device = assignment.device
    udf = make_udf(PartsUDF, workers, cpus, device)(assignment, device == "cuda")
    todo = list(parts)
    failures = 0
    while todo:
        cause = _try(udf, todo, workers, progress)
        rest = left(todo)
        failures = failures + 1 if len(rest) == len(todo) else 0
        if failures >= TRIES:
            raise BadInput(
                f"{failures} times in a row a worker ended before a part was done ({cause}); "
                "mend that and give the same command again, which goes on"
            )
        if rest:
            log.warning(
                "rerank: a worker or a node ended (%s); going on with %d parts", cause, len(rest)
            )
        todo = rest


def _try(udf: Any, todo: Sequence[Part], workers: int, progress: Callable[[], None]) -> str:
    """Do parts as far as the workers live. Returns why one ended, if one did."""
    texts = [json.dumps({"number": part.number, "slices": part.slices}) for part in todo]
    stretch = max(1, len(texts) // (workers * STRETCHES))
    frame = daft.from_pydict({"part": texts})
    if daft.get_or_create_runner().name == "ray":
        frame = frame.into_partitions(-(-len(texts) // stretch))
    else:
        frame = frame.into_batches(stretch)
    answers = frame.select(udf.do(col("part")).alias("answer"))
    call = _BackgroundCall(lambda: answers.to_pydict()["answer"])
    while not call.wait(LOOK_S):
        progress()
    if call.error is not None:  # Daft and Ray have many for one that died
        return _cause(call.error)
    bad = next((why for why in call.result if why), None)
    if bad is not None:
        raise BadInput(bad)
    return ""


class _BackgroundCall:
    """A call in a thread: Ctrl-C and a termination reach the main one, which Daft would block."""

    def __init__(self, call: Callable[[], list[str]]) -> None:
        self.result: list[str] = []
        self.error: BaseException | None = None
        self._others = set(psutil.Process().children(recursive=True))
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], list[str]]) -> None:
        try:
            self.result = call()
        except BaseException as error:
            self.error = error

    def wait(self, seconds: float) -> bool:
        """Wait some seconds, and tell whether it is done.

        What interrupts the wait ends the workers, too.
        """
        try:
            self._thread.join(seconds)
        except BaseException:
            for child in set(psutil.Process().children(recursive=True)) - self._others:
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
                    child.kill()
            raise
        return not self._thread.is_alive()


def _cause(error: BaseException) -> str:
    """The last line that says something, which is where Daft and Ray put the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else first_line(error))[:200]


def start_ray(address: str, device: str) -> tuple[int, int]:
    """Let Daft run on the Ray cluster at `address`, or one of this machine's own for `ray`.

    Returns how many workers there may be, one a GPU or a node, and the CPUs that each may
    reserve. Raises BadInput where ray is not installed or the cluster is not there.
    """
    try:
        import ray
    except ImportError:
        raise BadInput(
            f"`where={address}`: needs the extra ray (pip install 'xopt-rerank[ray]')"
        ) from None
    host, _, port = address.rpartition("//")[2].partition(":")
    try:
        if port:  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        if not ray.is_initialized():
            cluster = None if address == "ray" else address
            ray.init(cluster, log_to_driver=False, configure_logging=False)
        daft.set_runner_ray(noop_if_initialized=True)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BadInput(
            f"`where={address}`: no Ray cluster there ({first_line(error)}); give ray, "
            "HOST:PORT or ray://HOST:PORT"
        ) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call] # Ray's
    what = "GPU" if device == "cuda" else "CPU"
    counts = [int(resources.get(what, 0)) for resources in nodes if resources.get(what, 0) >= 1]
    if not counts:
        raise BadInput(f"`where={address}`: no node of that cluster has a {what}")
    return (sum(counts), 1) if device == "cuda" else (len(counts), min(counts))
