"""How far a job is, how fast it goes and how long it will take, on standard error."""

from __future__ import annotations

import logging
import time

__all__ = ["Progress", "clock"]

log = logging.getLogger(__name__)

EVERY_S = 10.0


class Progress:
    """Logs how many of `total` rows are done, `before` of them by an earlier call.

    Every ten seconds at most.
    """

    def __init__(self, total: int, before: int) -> None:
        self.total = total
        self.before = before
        self._start = time.monotonic()
        self._logged = self._start

    def at(self, rows: int) -> None:
        """Log that so many rows are done, those before included."""
        now = time.monotonic()
        if rows <= self.before or (now - self._logged < EVERY_S and rows < self.total):
            return
        self._logged = now
        rate = (rows - self.before) / (now - self._start)
        left = clock((self.total - rows) / rate)
        log.info(
            "rerank: %.1f %%, %s of %s pairs, %s a second, %s left",
            100 * rows / self.total,
            f"{rows:,}",
            f"{self.total:,}",
            f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}",
            left,
        )


def clock(seconds: float) -> str:
    """Write a span of time as people say it."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours / 24:.1f} days"
