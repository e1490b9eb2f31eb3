"""Tables, a row at a time: JSON lines, CSV, TSV and Parquet files, and Hugging Face datasets."""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.files import writing

__all__ = [
    "FILES",
    "HIDDEN",
    "Values",
    "open_text",
    "read_hf",
    "read_jsonl",
    "read_rows",
    "read_table",
    "readable",
    "write_hf",
]

log = logging.getLogger(__name__)

Values = tuple[str, dict[str, Any]]  # where a row stands, for messages, and its values by column
READ = ("query_id", "query", "doc_id", "title", "text", "relevance")  # columns of every table
GZIP = b"\x1f\x8b"
# with which the names of files begin that Hadoop, Spark and others take for none of a table's
HIDDEN = (".", "_")


def read_rows(path: Path) -> Iterable[Values]:
    """The rows of a file, or of a folder of Parquet files, each with where it stands.

    Raises BadInput where the file is of no known kind. What else a folder has is left out, with a
    warning.
    """
    if path.is_dir():
        there = [file for file in sorted(path.iterdir()) if not file.name.startswith(HIDDEN)]
        files = [file for file in there if file.suffix == ".parquet"]
        if others := [file.name for file in there if file not in files]:
            log.warning(
                "%s: only its Parquet files are read, and not %.160s", path, ", ".join(others)
            )
        return (row for file in files for row in _parquet(file))
    name = path.name.lower()
    reader = FILES.get(Path(name.removesuffix(".gz")).suffix)
    if reader is None or (reader is _parquet and name.endswith(".gz")):
        raise BadInput(
            f"{path}: unknown kind {path.suffix!r}; give a {', '.join(FILES)} file, gzipped or not"
        )
    return reader(path)


def read_table(path: Path) -> Iterator[Values]:
    """As `read_rows`. Raises BadInput, too, where what is read is damaged or in another
    encoding.
    """
    with readable(str(path)):
        yield from read_rows(path)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Raises BadInput where a file cannot be read, is damaged, or is not in UTF-8."""
    try:
        yield
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(
            f"{name}: cannot be read ({error}); files are text in UTF-8, gzipped or not"
        ) from error


@contextmanager
def open_text(path: Path, newline: str | None = "\n") -> Iterator[TextIO]:
    """A text file in UTF-8, with or without a byte-order mark, gzipped or not: its content
    tells.
    """
    with path.open("rb") as file:
        gzipped = file.peek(2)[:2] == GZIP
        with gzip.GzipFile(fileobj=file) if gzipped else file as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def read_jsonl(path: Path) -> Iterator[Values]:
    """The objects of a JSON-lines file, each with its file and line; blank lines are none."""
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{where}: not JSON ({getattr(error, 'msg', error)})") from None
            if not isinstance(row, dict):
                raise BadInput(f"{where}: not a JSON object")
            yield where, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where it has a key twice, of which json would keep the
    last one.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"key {_twice(name for name, _ in pairs)!r} stands twice")
    return made


def _twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _csv(path: Path) -> Iterator[Values]:
    """RFC 4180: fields may be quoted, and then hold commas, line breaks and doubled quotes."""
    csv.field_size_limit(1 << 30)  # a document may be long
    with open_text(path, newline="") as lines:
        reader = csv.reader(lines, strict=True)
        columns: list[str] | None = None
        while True:
            start = reader.line_num + 1
            where = f"{path}:{start}"
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise BadInput(
                    f"{where}: not CSV ({error}); a quote within a quoted field is doubled"
                ) from None
            if not fields:
                continue
            if columns is None:
                columns = _header(fields, where)
            else:
                row = _row(columns, fields, where)
                if reader.line_num > start and any(
                    _swallowed(i, fields, columns) for i in range(len(fields))
                ):
                    raise BadInput(
                        f"{where}: a quoted field reaches to line {reader.line_num} over what look like rows; close or "
                        "double the quote that it starts with, or write TSV or JSON lines"
                    )
                yield where, row


def _swallowed(place: int, fields: list[str], columns: list[str]) -> bool:
    """Whether a field over several lines looks like rows that a quote at its start has swallowed.

    Without that quote each line is a row: with as many fields, and an id of the same form as in
    the first one.
    """
    lines = [line.split(",") for line in fields[place].splitlines() if line]
    if len(lines) < 2:
        return False
    rows = [[*fields[:place], *lines[0]], *lines[1:-1], [*lines[-1], *fields[place + 1 :]]]
    ids = [i for i, name in enumerate(columns) if name in ("query_id", "doc_id")]
    if any(len(row) != len(columns) for row in rows):
        return False
    forms = [{i: re.sub(r"\d+", "0", row[i]) for i in ids} for row in rows]
    return all(any(form[i] == forms[0][i] for i in ids) for form in forms)


def _tsv(path: Path) -> Iterator[Values]:
    """A row a line, tabs between fields and no quoting, as MS MARCO, BEIR and `cut` write it."""
    with open_text(path) as lines:
        columns: list[str] | None = None
        for number, line in enumerate(lines, start=1):
            fields, where = line.rstrip("\r\n").split("\t"), f"{path}:{number}"
            if fields == [""]:
                continue
            if columns is None:
                columns = _header(fields, where)
            else:
                yield where, _row(columns, fields, where)


def _header(fields: list[str], where: str) -> list[str]:
    columns = [field.strip() for field in fields]
    if len(set(columns)) < len(columns):
        raise BadInput(f"{where}: the header names column {_twice(columns)!r} twice")
    return columns


def _row(columns: list[str], fields: list[str], where: str) -> dict[str, Any]:
    if len(fields) != len(columns):
        raise BadInput(
            f"{where}: {len(fields)} fields, starting {fields[0]!r:.40}, below a header of {len(columns)}"
        )
    return dict(zip(columns, fields, strict=True))


def _parquet(path: Path) -> Iterator[Values]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _header(schema.names, str(path))
            # some are none of Python's
            times = [field for field in schema if pyarrow.types.is_temporal(field.type)]
            if read := next((field for field in times if field.name in READ), None):
                raise BadInput(
                    f"{path}: column {read.name!r} is of {read.type}; cast it to text first"
                )
            columns = [field.name for field in schema if field not in times]
            for batch in file.iter_batches(columns=columns):
                for values in batch.to_pylist():
                    yield f"{path}: row {number}", values
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a Parquet file ({first_line(error)})") from error
    except (OverflowError, ValueError) as error:  # of times within lists and objects
        raise BadInput(
            f"{path}: row {number} or one behind it holds what Python has not ({error})"
        ) from error


FILES = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}


def read_hf(name: str, split: str) -> Iterator[Values]:
    """The rows of a Hugging Face dataset, `ID` or `ID:CONFIG`, or of a local folder that holds one.

    Raises BadInput where the package `datasets` is not installed or the dataset cannot be loaded.
    """
    return _hf_rows(name, _hf(name, split))


def write_hf(name: str, split: str, out: Path) -> None:
    """Write them to a Parquet file, with the types that they have there; see `read_hf`."""
    loaded = _hf(name, split)
    try:
        with writing(out):
            loaded.to_parquet(out)
    except BadInput:
        raise
    except Exception as error:  # each format has its own
        raise BadInput(f"hf:{name}: cannot be read ({first_line(error)})") from error


def _hf(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise BadInput(f"hf:{name}: needs the package datasets (pip install datasets)") from None
    dataset, _, config = name.partition(":")
    try:
        return datasets.load_dataset(dataset, config or None, split=split)
    except Exception as error:  # the hub, the file system and the format each raise their own
        raise BadInput(
            f"hf:{name}: split {split!r} cannot be loaded ({first_line(error)})"
        ) from error


def _hf_rows(name: str, loaded: Iterable[dict[str, Any]]) -> Iterator[Values]:
    number = 0
    try:
        for number, values in enumerate(loaded):
            yield f"hf:{name}: row {number}", values
    except BadInput:
        raise
    except Exception as error:  # each format has its own
        raise BadInput(f"hf:{name}: row {number} or the next cannot be read ({error})") from error
