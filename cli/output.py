"""What the commands print: tables on standard output, progress on standard error, JSON where
asked.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xopt.runtime.errors import BadInput
from xopt.runtime.files import check_writable, write_text
from xopt.runtime.folder import MANIFEST

__all__ = ["Output", "json_option", "plain"]

PIPED_WIDTH = 200  # columns, where standard output is no terminal
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
GAP = 2  # columns between those of a table
TEXT_WIDTH = 24  # columns that a text is not wrapped below

json_option = click.option(
    "--json",
    "json_file",
    metavar="FILE|-",
    type=click.Path(allow_dash=True),
    help="Write the result as JSON to FILE, or to standard output (-).",
)


class Output:
    """Where a command's result goes: JSON to a file or standard output, tables to the other."""

    def __init__(self, json_file: str | None) -> None:
        self.json_file = json_file
        if json_file not in (None, "-"):
            _check_place(Path(str(json_file)))  # before the work, not after it
        stream = sys.stderr if json_file == "-" else sys.stdout
        self.console = Console(
            file=stream, highlight=False, width=None if stream.isatty() else PIPED_WIDTH
        )

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        left: Sequence[str] = (),
    ) -> None:
        """Print a table; the first column and those in `left` are left-aligned, the others,
        figures, to the right.

        Texts in `left` are wrapped. Figures never are: where the terminal is too narrow for them,
        each row becomes a block with a line a column.
        """
        self.line(title)
        if _least_width(columns, rows, left) > self.console.width:
            self._blocks(columns, rows)
            return
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
        for i, column in enumerate(columns):
            text = column in left
            table.add_column(
                Text(column), justify="left" if text or not i else "right", no_wrap=not text
            )
        for row in rows:
            table.add_row(*(Text(_printable(cell)) for cell in row))
        self.console.print(table)
        self.console.print()

    def _blocks(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        width = max(map(len, columns[1:]), default=0)
        for row in rows:
            self.line(row[0] or columns[0])
            for column, cell in zip(columns[1:], row[1:], strict=True):
                if cell:
                    self.line(f"  {column:{width}}  {' '.join(cell.split())}")
        self.line("")

    def line(self, text: str) -> None:
        """Print a line of text as it is."""
        self.console.print(Text(_printable(text)), soft_wrap=True)

    def json(self, value: Any) -> None:
        """Write the JSON that was asked for, if any."""
        if self.json_file is None:
            return
        text = json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
        if self.json_file == "-":
            sys.stdout.write(text)
        else:
            write_text(Path(self.json_file), text)


def _check_place(file: Path) -> None:
    """Raises BadInput where JSON cannot be written there, or it would replace what no command
    wrote as JSON.
    """
    if file.is_dir():
        raise BadInput(f"--json {file}: is a folder; name a file in it")
    context = click.get_current_context(silent=True)
    others = [
        value for name, value in (context.params if context else {}).items() if name != "json_file"
    ]
    paths = [each for value in others for each in (value if isinstance(value, tuple) else (value,))]
    if any(
        file.resolve() == Path(each).resolve()
        for each in paths
        if isinstance(each, (str, Path)) and each
    ):
        raise BadInput(f"--json {file}: is named for something else too; name another file")
    check_writable(file)
    if file.is_file() and file.stat().st_size:
        with file.open("rb") as stream:
            start = stream.readline(4).strip()
        if file.name == MANIFEST or start not in (b"{", b"["):
            raise BadInput(
                f"--json {file}: is there already, and no result of a command; name another file"
            )


def _printable(text: str) -> str:
    """The text without control characters, by which a document could recolour or clear a
    terminal.
    """
    return CONTROL.sub("\ufffd", text)


def _least_width(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str]) -> int:
    """The columns that a table needs to show all figures whole."""
    total = -GAP
    for i, column in enumerate(columns):
        lines = [line for cell in (column, *(row[i] for row in rows)) for line in cell.split("\n")]
        width = max(map(cell_len, lines), default=0)
        total += GAP + (min(width, TEXT_WIDTH) if column in left else width)
    return total


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
