"""Where a scorer's time goes: tokenising, forwards and padding."""

from __future__ import annotations

import operator
import threading
from dataclasses import dataclass
from typing import Any

__all__ = ["Call", "Stages", "Stopwatch"]


@dataclass(frozen=True)
class Stages:
    """Totals over the calls of a scorer."""

    encode_s: float = 0.0  # tokenising
    run_s: float = 0.0  # wall time of running forwards
    forward_s: float = 0.0  # within forwards, summed over callers, by the device's clock
    copy_s: float = 0.0  # copying pairs to the device, likewise
    caller_s: float = 0.0  # run_s times those who called forwards
    forwards: float = 0.0
    text_tokens: float = 0.0
    padded_tokens: float = 0.0  # padding and text
    squared_tokens: float = 0.0  # sum of pairs x width^2, which attention grows with
    truncated: float = 0.0  # pairs cut to the model's length

    def plus(self, other: Stages) -> Stages:
        return Stages(*map(operator.add, vars(self).values(), vars(other).values()))

    def minus(self, earlier: Stages) -> Stages:
        return Stages(*map(operator.sub, vars(self).values(), vars(earlier).values()))


@dataclass(frozen=True)
class Call:
    """One call of the UDF."""

    pid: int
    start_s: float
    end_s: float
    pairs: int
    stages: Stages

    @staticmethod
    def of(values: dict[str, Any]) -> Call:
        """Restore what `asdict` made."""
        return Call(**{**values, "stages": Stages(**values["stages"])})


class Stopwatch:
    """Adds up stages; several threads may report at once."""

    def __init__(self) -> None:
        self.stages = Stages()
        self._lock = threading.Lock()

    def encoded(self, seconds: float, truncated: int = 0) -> None:
        """Record tokenising, and how many pairs were cut."""
        self._add(Stages(encode_s=seconds, truncated=truncated))

    def forwarded(
        self, seconds: float, copy_s: float, pairs: int, width: int, text_tokens: int
    ) -> None:
        forward = Stages(
            forward_s=seconds,
            copy_s=copy_s,
            forwards=1,
            text_tokens=text_tokens,
            padded_tokens=pairs * width,
            squared_tokens=pairs * width**2,
        )
        self._add(forward)

    def ran(self, seconds: float, callers: int = 1) -> None:
        """Record the wall time of forwards, which so many callers ran."""
        self._add(Stages(run_s=seconds, caller_s=callers * seconds))

    def _add(self, stages: Stages) -> None:
        with self._lock:
            self.stages = self.stages.plus(stages)
