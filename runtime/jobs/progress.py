"""How far a job is, how fast it goes and how long it will take, on standard error."""

from __future__ import annotations

import logging
import time

__all__ = ["Progress", "clock"]

log = logging.getLogger(__name__)

EVERY_S = 10.0


class Progress:
    """Tells of rows that are done, of `total`, `before` of them by an earlier call: at most every
    ten seconds.
    """

    def __init__(self, total: int, before: int) -> None:
        self.total, self.before = total, before
        self._start = self._told = time.monotonic()

    def at(self, rows: int) -> None:
        """So many rows are done, those before included."""
        now = time.monotonic()
        if rows <= self.before or (now - self._told < EVERY_S and rows < self.total):
            return
        self._told = now
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
    """A span of time as people say it."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours / 24:.1f} days"
