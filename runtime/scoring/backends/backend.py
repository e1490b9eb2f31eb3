"""What a scorer asks of a backend: load, forward, finish, and a clock."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.backends.kinds import Times
from xopt.runtime.scoring.encode import Tokens
from xopt.runtime.scoring.plan import Forward

__all__ = [
    "UNPADDED",
    "Backend",
    "Clock",
    "CpuClock",
    "OutOfMemory",
    "PaddedArrays",
    "check_no_fork",
    "pad",
]


UNPADDED = "/unpadded"  # names in a graph what runs where no pair of a forward is padded


_began: dict[str, int] = {}  # the process that first ran a runtime's threads


def check_no_fork(runtime: str, begins: bool = True) -> None:
    """Raises BadInput in a process that was forked after the `runtime` ran: its threads, and
    their locks, are lost.

    `begins`: it runs from now on.
    """
    if _began.get(runtime, os.getpid()) != os.getpid():
        raise BadInput(
            f"{runtime} ran before this process was forked, which its threads do not survive; start processes with "
            "multiprocessing's 'spawn', or open a variant onnx-* in them"
        )
    if begins:
        _began[runtime] = os.getpid()


class OutOfMemory(Exception):
    """A forward does not fit into the device's memory; a smaller one may."""


class Clock(Protocol):
    """Tells how long a device was at work between two marks, once all is finished."""

    def mark(self) -> Any:
        """Now."""

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two marks."""


class Backend(Protocol):
    """Runs a variant on a device. `load` and `forward` may return before the device is done;
    `finish` waits.

    `streams`: the device works while the host goes on, so that tokenising ahead keeps it busy.
    `step`: of the widths that it is fastest with, as `xopt.runtime.scoring.plan.plan_forwards`
    takes it.
    """

    clock: Clock
    streams: bool
    step: int

    def load(self, tokens: Tokens, forward: Forward) -> Any:
        """Bring the pairs of a forward to the device."""

    def forward(self, batch: Any) -> Any:
        """Logits of a loaded batch, wherever they are. Raises OutOfMemory."""

    def finish(self, outputs: Sequence[Any]) -> NDArray[np.float32]:
        """Logits of all forwards, one after the other: float32[pairs, labels]."""

    def profiled(self, batches: Sequence[Any]) -> Times:
        """Where the time of loaded batches goes, one after the other, by the runtime's own
        profiler; empty if none.
        """


class CpuClock:
    """The host's clock: on a CPU a call returns when it is done."""

    @staticmethod
    def mark() -> float:
        """Now."""
        return time.monotonic()

    @staticmethod
    def seconds(start: float, end: float) -> float:
        """The time between two marks."""
        return end - start


class PaddedArrays:
    """What backends share that take padded arrays and return when they are done."""

    clock: Clock = CpuClock()
    streams = False
    step = 0
    pad_id: int
    left: bool

    def load(self, tokens: Tokens, forward: Forward) -> dict[str, NDArray[np.int64]]:
        """The int64[pairs, width] arrays of a forward."""
        return pad(tokens, forward, self.pad_id, left=self.left)

    def finish(self, outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Logits of all forwards."""
        return np.concatenate(outputs)

    def profiled(self, _: Sequence[dict[str, NDArray[np.int64]]]) -> Times:
        """Nothing: this runtime has no profiler."""
        return Times(float)


def pad(
    tokens: Tokens, forward: Forward, pad_id: int, *, left: bool
) -> dict[str, NDArray[np.int64]]:
    """The int64[pairs, width] arrays of one forward: ids, attention mask and type ids; padding on
    the `left`.
    """
    shape = (len(forward.rows), forward.width)
    ids, mask, types = (
        np.full(shape, pad_id, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
    )
    for i, row in enumerate(forward.rows):
        length = int(tokens.lengths[row])
        place = slice(forward.width - length, None) if left else slice(length)
        ids[i, place], mask[i, place], types[i, place] = tokens.ids[row], 1, tokens.type_ids[row]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
