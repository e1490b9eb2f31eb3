"""Where a scorer's time goes: tokenising, forwards, and tokens that are no text."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["Call", "Stages", "Stopwatch"]


@dataclass(frozen=True)
class Stages:
    """Totals over calls.

    encode_s: tokenising. run_s: wall time of planning and running all forwards. forward_s: time
    within forwards, summed over callers, on a GPU by its own clock; copy_s: of bringing pairs to
    the device likewise. caller_s: the callers' time for run_s, that times their number.
    text_tokens, and padded_tokens with padding counted; squared_tokens: the sum of pairs x
    width^2, for attention. truncated: pairs cut to the model's length.
    """

    encode_s: float = 0.0
    run_s: float = 0.0
    forward_s: float = 0.0
    copy_s: float = 0.0
    caller_s: float = 0.0
    forwards: float = 0.0
    text_tokens: float = 0.0
    padded_tokens: float = 0.0
    squared_tokens: float = 0.0
    truncated: float = 0.0

    def plus(self, other: Stages) -> Stages:
        """Both together."""
        return Stages(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Stages)))

    def minus(self, earlier: Stages) -> Stages:
        """What was done since."""
        return Stages(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(Stages)))


@dataclass(frozen=True)
class Call:
    """One call of the UDF: the process it ran in, when, over how many rows, and where the time
    went.
    """

    pid: int
    start_s: float
    end_s: float
    pairs: int
    stages: Stages

    @staticmethod
    def of(values: dict[str, Any]) -> Call:
        """A call back from its `asdict`, as JSON keeps it."""
        return Call(**{**values, "stages": Stages(**values["stages"])})


class Stopwatch:
    """Adds up stages; callers may report at once."""

    def __init__(self, callers: int) -> None:
        self.callers, self.stages = callers, Stages()
        self._lock = threading.Lock()

    def encoded(self, seconds: float, truncated: int = 0) -> None:
        """Pairs were tokenised, and some of them cut."""
        with self._lock:
            self.stages = self.stages.plus(Stages(encode_s=seconds, truncated=truncated))

    def forwarded(
        self, seconds: float, copy_s: float, pairs: int, width: int, text_tokens: int
    ) -> None:
        """A forward ran."""
        with self._lock:
            self.stages = self.stages.plus(
                Stages(
                    forward_s=seconds,
                    copy_s=copy_s,
                    forwards=1,
                    text_tokens=text_tokens,
                    padded_tokens=pairs * width,
                    squared_tokens=pairs * width**2,
                )
            )

    def ran(self, seconds: float) -> None:
        """All forwards of a call ran."""
        with self._lock:
            self.stages = self.stages.plus(Stages(run_s=seconds, caller_s=self.callers * seconds))
