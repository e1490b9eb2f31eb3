"""How far long work is: code opens steps, and a listener shows them, where one is set.

    with progress("onnx-int8 scores", total=9000, unit="pairs", work=tokens) as step:
        step.advance(32, work=4100)

The `xopt` command sets a listener. Python callers hear nothing unless they set one:

    with listening(Lines(log.info)):
        validate(folder, variants, candidates)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Lines", "Listener", "Step", "clock", "listening", "progress"]

SOUND_S = 1.0  # a rate over less time than that tells nothing


@dataclass(eq=False)
class Step:
    """A piece of work that takes time.

    total, done: in `unit`s; total is None where it is not known beforehand.
    work: of what is left at the start, in what its time goes by, such as tokens. None where no
        estimate would be honest.
    limit_s: the time that it was given.
    note: what it is at.
    """

    title: str
    total: int | None = None
    unit: str = ""
    work: float | None = None
    done: int = 0
    limit_s: float | None = None
    note: str = ""
    worked: float = 0.0

    def __post_init__(self) -> None:
        self.before = self.done
        self.started_s = time.monotonic()
        self.advanced_s = self.started_s
        self._lock = threading.Lock()  # a scorer's callers advance the same step

    def advance(self, count: int = 1, work: float | None = None) -> None:
        """Note that so many units are done, which were so much work: as much, unless given."""
        with self._lock:
            self.done += count
            self.worked += count if work is None else work
            self.advanced_s = time.monotonic()

    def begin(self, note: str) -> None:
        """Begin the next of `total` parts. `done` is the number of the one that is begun."""
        self.advance()
        self.note = note

    @property
    def label(self) -> str:
        return f"{self.title}, {self.note}" if self.note else self.title

    @property
    def took_s(self) -> float:
        return time.monotonic() - self.started_s

    @property
    def share(self) -> float | None:
        """How much is done, from 0 to 1, None where that is not known."""
        if not self.work:
            return None
        before = self.before / self.total if self.total else 0.0
        return min(1.0, before + (1 - before) * self.worked / self.work)

    @property
    def left_s(self) -> float | None:
        """How long the rest takes at the rate so far, None where that is not known."""
        measured_s = self.advanced_s - self.started_s
        if not self.work or not self.worked or measured_s < SOUND_S:
            return None
        left_s = measured_s * (self.work - self.worked) / self.worked
        left_s -= time.monotonic() - self.advanced_s
        return left_s if left_s > 0 else None

    @property
    def count_text(self) -> str:
        if self.total is not None:
            return f"{self.done:,} of {self.total:,} {self.unit}"
        return f"{self.done:,} {self.unit}" if self.done else ""

    @property
    def rate_text(self) -> str:
        """How many pairs a second, where the time left is known too."""
        if self.unit != "pairs" or self.left_s is None:
            return ""
        rate = (self.done - self.before) / (self.advanced_s - self.started_s)
        return f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.1f} a second"

    @property
    def time_text(self) -> str:
        left_s = self.left_s
        if left_s is not None:
            return f"{clock(left_s)} left"
        if self.limit_s is not None:
            return f"{clock(self.took_s)} of {clock(self.limit_s)}"
        return f"{clock(self.took_s)} so far"

    def __str__(self) -> str:
        figures = [self.count_text, self.rate_text, self.time_text]
        return f"{self.label}: {', '.join(filter(None, figures))}"


class Listener:
    """Knows the steps that are open, outer ones first. Without more it shows nothing."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def start(self) -> None:
        """Begin to listen."""

    def stop(self) -> None:
        """End listening."""

    def opened(self, step: Step) -> None:
        self.steps.append(step)

    def closed(self, step: Step) -> None:
        self.steps.remove(step)


class Lines(Listener):
    """Writes a line on the open steps every half minute, whatever they are busy with."""

    def __init__(self, write: Callable[[str], object], every_s: float = 30.0) -> None:
        super().__init__()
        self.write = write
        self.every_s = every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.every_s):
            steps = list(self.steps)
            if steps:
                self.write(" > ".join(map(str, steps)))


_listener: Listener | None = None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let a listener, in place of an earlier one, show the steps of all threads."""
    global _listener  # noqa: PLW0603 # what works does not know who listens
    earlier = _listener
    _listener = listener
    listener.start()
    try:
        yield
    finally:
        _listener = earlier
        listener.stop()


@contextmanager
def progress(
    title: str,
    total: int | None = None,
    unit: str = "",
    *,
    work: float | None = None,
    done: int = 0,
    limit_s: float | None = None,
) -> Iterator[Step]:
    """Open a step, which is shown as long as the block runs; see `Step`."""
    step = Step(title, total, unit, work, done, limit_s)
    listener = _listener
    if listener is None:
        yield step
        return
    listener.opened(step)
    try:
        yield step
    finally:
        listener.closed(step)


def clock(seconds: float) -> str:
    """Write a span of time as people say it."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours / 24:.1f} days"
