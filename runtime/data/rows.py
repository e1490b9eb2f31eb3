"""Tables of candidates, a pair a row: JSON lines, CSV, TSV and Parquet files, and Hugging Face datasets."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xopt.runtime.errors import BadInput

__all__ = ["FILES", "Values", "read_hf", "read_jsonl", "read_rows"]

Values = tuple[str, dict[str, Any]]  # where a row stands, for messages, and its values by column


def read_rows(path: Path) -> Iterable[Values]:
    """The rows of a file, each with where it stands. Raises BadInput where the file is of no known kind."""
    reader = FILES.get("".join(path.suffixes[-2:])) or FILES.get(path.suffix)
    if reader is None:
        raise BadInput(f"{path}: unknown kind {path.suffix!r}; give a {', '.join(FILES)} file")
    return reader(path)


def read_jsonl(path: Path) -> Iterator[Values]:
    """The objects of a JSON-lines file, gzipped or not, each with its file and line."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"{where}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise BadInput(f"{where}: not a JSON object")
            yield where, row


def _csv(path: Path, delimiter: str = ",") -> Iterator[Values]:
    csv.field_size_limit(1 << 30)  # a document may be long
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter)
        for values in reader:
            yield f"{path}:{reader.line_num}", values


def _tsv(path: Path) -> Iterator[Values]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[Values]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise BadInput(f"{path}: not a Parquet file ({str(error).partition(chr(10))[0]})") from error
    return ((f"{path}: row {i}", values) for i, values in enumerate(table.to_pylist()))


FILES = {".jsonl": read_jsonl, ".jsonl.gz": read_jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}


def read_hf(name: str, split: str) -> Iterator[Values]:
    """The rows of a Hugging Face dataset, `ID` or `ID:CONFIG`, or of a local folder that holds one.

    Raises BadInput where the package `datasets` is not installed or the dataset cannot be loaded.
    """
    try:
        import datasets
    except ImportError:
        raise BadInput(f"hf:{name}: needs the package datasets (pip install datasets)") from None
    dataset, _, config = name.partition(":")
    try:
        loaded = datasets.load_dataset(dataset, config or None, split=split)
    except Exception as error:  # the hub, the file system and the format each raise their own
        raise BadInput(f"hf:{name}: split {split!r} cannot be loaded ({str(error).partition(chr(10))[0]})") from error
    return ((f"hf:{name}: row {i}", values) for i, values in enumerate(loaded))
