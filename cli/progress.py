"""Progress on standard error: bars on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import contextlib
import logging
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from xopt.runtime.progress import Lines, Listener, Step

__all__ = ["Bars", "BarsHandler", "listener_on"]

EVERY_S = 30.0  # between lines
REFRESHES_PER_S = 8
SETTLED_S = 0.5  # an inner step that is done within that is not shown
WIDE = 80  # characters: room for a bar
NARROW = 60  # below that a share takes the place of counts
BAR_WIDTH = 16


def listener_on(stream: TextIO) -> Listener:
    """Return what shows progress on standard error."""
    console = Console(file=stream, highlight=False)
    # rich takes a pipe for a terminal where FORCE_COLOR says so
    if stream.isatty() and console.is_interactive:
        return Bars(console)

    def write(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed: nobody reads it
            print(line, file=stream, flush=True)

    return Lines(write, EVERY_S)


class Bars(Listener):
    """Shows the open steps at the foot of a terminal, and clears them with the outermost."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        is_unicode = console.encoding.lower().startswith("utf")
        self.spinner = Spinner("dots" if is_unicode else "line")
        self.live: Live | None = None

    def opened(self, step: Step) -> None:
        super().opened(step)
        if self.live is None:
            self.live = Live(
                console=self.console,
                get_renderable=self.render,
                refresh_per_second=REFRESHES_PER_S,
                transient=True,
                redirect_stdout=False,
            )
            self.live.start()

    def closed(self, step: Step) -> None:
        super().closed(step)
        if self.live is not None and not self.steps:
            self.live.stop()
            self.live = None

    def render(self) -> Group:
        steps = list(self.steps)
        shown = steps[:1] + [step for step in steps[1:] if step.took_s > SETTLED_S]
        return Group(*(self._row(step, depth) for depth, step in enumerate(shown)))

    def _row(self, step: Step, depth: int) -> Table:
        """A line of its own for each step, which no width wraps."""
        width = self.console.width
        row = Table.grid(padding=(0, 1, 0, 0), expand=True)
        row.add_column(width=1)
        row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        first: RenderableType = Text("") if depth else self.spinner
        cells = [first, Text("  " * depth + step.label)]
        share = step.share
        if share is not None and width >= WIDE:
            row.add_column(width=BAR_WIDTH)
            cells.append(ProgressBar(total=1.0, completed=share, width=BAR_WIDTH))
        row.add_column(justify="right", no_wrap=True, overflow="ellipsis")
        cells.append(Text(_figures(step, width)))
        row.add_row(*cells)
        return row


def _figures(step: Step, width: int) -> str:
    count = step.count_text
    if width < NARROW:
        count = "" if step.share is None else f"{100 * step.share:.0f} %"
    return ", ".join(filter(None, [count, step.time_text]))


class BarsHandler(logging.Handler):
    """Prints what is logged above the bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(Text(self.format(record)), soft_wrap=True)
