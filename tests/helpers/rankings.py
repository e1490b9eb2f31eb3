"""Rankings that a test has written, read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The rows of a ranking."""
    if path.is_dir() or path.suffix == ".parquet":
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        return [row for file in files for row in pq.read_table(file).to_pylist()]
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
