"""What the commands print: tables on standard output, progress on standard error, JSON where asked."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xopt.runtime.files import write_text

__all__ = ["Output", "json_option", "plain"]

PIPED_WIDTH = 160  # columns, where standard output is no terminal

json_option = click.option(
    "--json", "json_file", metavar="FILE|-", help="Write the result as JSON to FILE, or to standard output (-)."
)


class Output:
    """Where a command's result goes: JSON to a file or standard output, tables to the other."""

    def __init__(self, json_file: str | None) -> None:
        self.json_file = json_file
        stream = sys.stderr if json_file == "-" else sys.stdout
        self.console = Console(file=stream, highlight=False, width=None if stream.isatty() else PIPED_WIDTH)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()
    ) -> None:
        """Print a table; the first column and those in `left` are left-aligned, the others, figures, to the right."""
        self.line(title)
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for i, column in enumerate(columns):
            table.add_column(Text(column), justify="left" if column in left or not i else "right", no_wrap=not i)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)
        self.console.print()

    def line(self, text: str) -> None:
        """Print a line of text as it is."""
        self.console.print(Text(text), soft_wrap=True)

    def json(self, value: Any) -> None:
        """Write the JSON that was asked for, if any."""
        if self.json_file is None:
            return
        text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if self.json_file == "-":
            sys.stdout.write(text)
        else:
            write_text(Path(self.json_file), text)


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    return str(value) if isinstance(value, Path) else value
