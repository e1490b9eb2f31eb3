"""Where results go: tables and lines to a terminal, JSON to a file or to standard output."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xopt.runtime.errors import BadInput
from xopt.runtime.files import check_writable, write_text
from xopt.runtime.folder import MANIFEST

if TYPE_CHECKING:
    from xopt.optimize.judge.statistics import Interval

__all__ = ["Output", "interval_text", "json_option", "plain"]

PIPED_WIDTH = 200  # characters per line where the output is no terminal
COLUMN_GAP = 2
WRAPPED_WIDTH = 24  # a column of text keeps at least this width
CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json; the command gets `output`: Output."""

    @functools.wraps(command)
    def with_output(json_file: str | None, **arguments: Any) -> Any:
        return command(output=Output(json_file), **arguments)

    option = click.option(
        "--json",
        "json_file",
        metavar="FILE|-",
        type=click.Path(allow_dash=True),
        help="Write the result as JSON to FILE, or to standard output (-). FILE may be an earlier "
        "result, but no other file.",
    )
    return option(with_output)


class Output:
    """Prints and writes a command's result.

    Tables go to standard output, or to standard error if the JSON goes to standard output.
    Raises BadInput, before any work is done, if the JSON file cannot be written.
    """

    def __init__(self, json_file: str | None) -> None:
        self.json_file = json_file
        if json_file not in (None, "-"):
            _check_json_file(Path(str(json_file)))
        stream = sys.stderr if json_file == "-" else sys.stdout
        width = None if stream.isatty() else PIPED_WIDTH
        self.console = Console(file=stream, highlight=False, width=width)

    def table(
        self, title: str, rows: Sequence[dict[str, str]], wrapped: Sequence[str] = ()
    ) -> None:
        """Print a table; each row has its cells by column.

        The first column and the `wrapped` ones, texts, are aligned to the left. The others hold
        figures, which are never cut or wrapped. On a terminal that is too narrow for them, each
        row becomes a block with a line per column.
        """
        self.line(title)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        if _least_width(columns, rows, wrapped) > self.console.width:
            self._blocks(columns, rows)
            return
        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, COLUMN_GAP, 0, 0))
        for column in columns:
            is_text = column in wrapped
            is_left = is_text or column == columns[0]
            table.add_column(
                Text(column), justify="left" if is_left else "right", no_wrap=not is_text
            )
        for row in rows:
            table.add_row(*(Text(_printable(row.get(column, ""))) for column in columns))
        self.console.print(table)
        self.console.print()

    def _blocks(self, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
        first, *others = columns
        width = max(map(len, others), default=0)
        for row in rows:
            self.line(row[first] or first)
            for column in others:
                if row.get(column):
                    self.line(f"  {column:{width}}  {' '.join(row[column].split())}")
        self.line("")

    def line(self, text: str) -> None:
        """Print a line of text as it is, without wrapping."""
        self.console.print(Text(_printable(text)), soft_wrap=True)

    def json(self, value: Any) -> None:
        """Write a result as JSON, if --json was given."""
        if self.json_file is None:
            return
        text = json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
        if self.json_file == "-":
            sys.stdout.write(text)
        else:
            write_text(Path(self.json_file), text)


def plain(value: Any) -> Any:
    """Convert a result to what JSON can hold: dataclasses to dicts, NaN and infinity to None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def interval_text(interval: Interval, digits: int = 3, separator: str = " ") -> str:
    """Format a mean and its interval: `0.972 [0.961, 0.980]`."""
    # Without + 0.0 a small loss below zero would be -0.000.
    values = [round(value, digits) + 0.0 for value in (interval.mean, interval.low, interval.high)]
    mean, low, high = [f"{value:.{digits}f}" for value in values]
    return f"{mean}{separator}[{low}, {high}]"


def _check_json_file(file: Path) -> None:
    """Raise BadInput if the file cannot be written, or should not be replaced."""
    if file.is_dir():
        raise BadInput(f"--json {file}: is a folder; name a file in it")
    if file.resolve() in _paths_of_other_arguments():
        raise BadInput(f"--json {file}: is named for something else too; name another file")
    check_writable(file)
    if file.is_file() and not _may_be_a_result(file):
        raise BadInput(
            f"--json {file}: is there already, and no result of a command; name another file"
        )


def _paths_of_other_arguments() -> set[Path]:
    context = click.get_current_context(silent=True)
    paths = set()
    for name, value in context.params.items() if context else ():
        if name == "json_file":
            continue
        for each in value if isinstance(value, tuple) else [value]:
            if isinstance(each, (str, Path)) and each:
                paths.add(Path(each).resolve())
    return paths


def _may_be_a_result(file: Path) -> bool:
    """Tell whether an existing file is empty or looks like JSON that a command wrote."""
    if file.stat().st_size == 0:
        return True
    with file.open("rb") as stream:
        first_line = stream.readline(4).strip()
    return file.name != MANIFEST and first_line in (b"{", b"[")


def _printable(text: str) -> str:
    """Replace control characters, with which a document could recolour or clear a terminal."""
    return CONTROL_CHARACTER.sub("\ufffd", text)


def _least_width(
    columns: Sequence[str], rows: Sequence[dict[str, str]], wrapped: Sequence[str]
) -> int:
    """Return the width that a table needs to show all figures whole."""
    total = COLUMN_GAP * (len(columns) - 1)
    for column in columns:
        cells = [column, *(row.get(column, "") for row in rows)]
        width = max(map(cell_len, "\n".join(cells).split("\n")))
        total += min(width, WRAPPED_WIDTH) if column in wrapped else width
    return total
