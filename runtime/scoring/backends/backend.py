"""What a scorer asks of a backend: load, forward, finish, and a clock."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.backends.kinds import Times
from xopt.runtime.scoring.encode import Tokens
from xopt.runtime.scoring.plan import Forward

__all__ = [
    "Arrays",
    "Logits",
    "UNPADDED",
    "Backend",
    "OutOfMemory",
    "PaddedArrays",
    "check_no_fork",
    "pad",
    "within_memory",
]

Arrays = dict[str, NDArray[np.int64]]  # a model's inputs, each [pairs, width]
Logits = NDArray[np.float32]  # [pairs, labels]

# How names begin in our ONNX graphs that run where no pair of a forward is padded.
UNPADDED = "/unpadded"

_process_of: dict[str, int] = {}  # the process that first ran a runtime's threads


def check_no_fork(runtime: str, begins: bool = True) -> None:
    """Raise BadInput in a process forked after `runtime` ran: its threads are lost.

    `begins` notes that it runs now.
    """
    process = os.getpid()
    if _process_of.get(runtime, process) != process:
        raise BadInput(
            f"{runtime} ran before this process was forked, which its threads do not survive; "
            "start processes with multiprocessing's 'spawn', or open a variant onnx-* in them"
        )
    if begins:
        _process_of[runtime] = process


class OutOfMemory(Exception):
    """A forward does not fit into the device's memory; a smaller one may."""


# As onnxruntime, OpenVINO, torch and the C++ library say it.
NO_MEMORY = re.compile(
    r"(failed to|can't|cannot|could not) alloc|bad.?alloc|alloc.failed|(out of|not enough) memory",
    re.IGNORECASE,
)


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """Raise OutOfMemory where a runtime gets no memory; they have no exception in common."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or NO_MEMORY.search(str(error)):
            raise OutOfMemory from error
        raise


class Backend(Protocol):
    """Runs a variant on a device: `load` and `forward` may return early; `finish` waits."""

    streams: bool  # the host goes on, and can tokenise ahead
    step: int  # as `plan_forwards` takes it

    def load(self, tokens: Tokens, forward: Forward) -> Any:
        """Bring the pairs of a forward to the device. Raises OutOfMemory."""

    def forward(self, batch: Any) -> Any:
        """Return the logits of a loaded batch, on the device. Raises OutOfMemory."""

    def finish(self, outputs: Sequence[Any]) -> Logits:
        """Return the logits of all forwards, joined."""

    def wide(self, threads: int) -> Backend:
        """Return the same for one caller, with so many threads; the folder may be gone.

        Raises BadInput where it cannot be opened.
        """

    def mark(self) -> Any:
        """Mark the time now, by the device's clock."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the time between two marks, once the device is done."""

    def profiled(self, batches: Sequence[Any]) -> Times:
        """Return seconds by kind of operation; empty where the runtime has no profiler."""


class PaddedArrays:
    """The part of backends that take padded arrays and return when they are done."""

    streams = False
    step = 0
    inputs: Collection[str] = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(self, folder: ModelFolder) -> None:
        self.pad_id = folder.manifest.pad_id
        self.left = folder.manifest.padding_side == "left"

    @within_memory()
    def load(self, tokens: Tokens, forward: Forward) -> Arrays:
        arrays = pad(tokens, forward, self.pad_id, left=self.left)
        return {name: array for name, array in arrays.items() if name in self.inputs}

    def finish(self, outputs: Sequence[Logits]) -> Logits:
        return np.concatenate(outputs)

    def mark(self) -> float:
        return time.monotonic()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def profiled(self, _: Sequence[Arrays]) -> Times:
        return Times(float)


def pad(tokens: Tokens, forward: Forward, pad_id: int, *, left: bool) -> Arrays:
    """Make the arrays of one forward, int64[pairs, width]."""
    shape = (len(forward.rows), forward.width)
    ids = np.full(shape, pad_id, np.int64)
    mask = np.zeros(shape, np.int64)
    type_ids = np.zeros(shape, np.int64)
    for i, row in enumerate(forward.rows):
        length = int(tokens.lengths[row])
        columns = slice(forward.width - length, None) if left else slice(length)
        ids[i, columns] = tokens.ids[row]
        mask[i, columns] = 1
        type_ids[i, columns] = tokens.type_ids[row]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": type_ids}
