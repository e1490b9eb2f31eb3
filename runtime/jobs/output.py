"""What a job writes: parts, and the one file or folder that they make."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xopt.runtime.data.parquet import is_json
from xopt.runtime.errors import BadInput
from xopt.runtime.files import new_file, sweep, writing
from xopt.runtime.locks import LOCK, Lock

__all__ = ["Target", "run_lines", "target_of", "write_part"]

KINDS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".run": "run",
    ".trec": "run",
}
INFINITY = np.float32(np.inf)
ONE = np.float32(1)
LOWEST = np.finfo(np.float32).min
TAG = "xopt"  # the last field of a run's lines
# A row group's size in a Parquet file that is made of many parts.
GROUP_ROWS = 1 << 17
GROUP_BYTES = 1 << 26


@dataclass(frozen=True)
class Target:
    """Where rankings go: one file, of the kind that its name says, or a folder of Parquet files.

    lock: what makes the job this process's, or its driver's; None before it is locked.
    """

    out: Path
    kind: str
    one_file: bool
    lock: Lock | None = None

    @property
    def job(self) -> Path:
        """The job's own folder."""
        return self.out.with_name(f"{self.out.name}.job")

    @property
    def record(self) -> Path:
        """The file that says what the job is."""
        return self.job / "job.json"

    def note(self, number: int) -> Path:
        """The file that says that a part is done."""
        return self.job / "done" / f"{number:06d}.json"

    def mark(self, number: int) -> Path:
        """The file that says that a part was begun: a line each time. It goes when that ends."""
        return self.job / "done" / f"{number:06d}.begun"

    def marks(self) -> list[Path]:
        """The marks of parts that were begun and have not ended."""
        marks = (self.job / "done").glob("*.begun")
        return sorted(mark for mark in marks if mark.stem.isdecimal())

    def part(self, number: int) -> Path:
        """The file of a part."""
        folder = self.job / "parts" if self.one_file else self.out
        return folder / f"part-{number:06d}.{self.kind}"

    def check_free(self, force: bool) -> None:
        """Raises BadInput where something stands there that no job made.

        A file may be replaced with `force`.
        """
        if self.record.is_file():
            return
        there = self.job.iterdir() if self.job.is_dir() else ()
        own = {*self._own(), *self.job.glob(f"{LOCK}*")}
        strange = next((path for path in there if path not in own), None)
        another = "choose another place with `out=`"
        if strange is not None:
            raise BadInput(
                f"{self.job}: is a folder that no job made, with {strange.name}; {another}"
            )
        if not self.out.exists():
            return
        if self.one_file and not force:
            raise BadInput(
                f"{self.out}: exists already; {another}, or replace it with `force=True`"
            )
        if not self.one_file and not self.out.is_dir():
            raise BadInput(f"{self.out}: is a file, and not a folder; {another}")
        if not self.one_file and self._has_files():
            raise BadInput(f"{self.out}: exists already, with files that no job made; {another}")

    def _has_files(self) -> bool:
        """Tell whether files are in OUT; hidden ones are no data, or another process's probe."""
        return any(not path.name.startswith(".") for path in self.out.iterdir())

    def clear(self, keep: Path) -> None:
        """Remove what an earlier job made, but for its one file.

        The new job replaces that when it is complete.
        """
        self.check_own()
        if self.record.is_file() and not self.one_file and self.out.is_dir():
            for part in self.out.glob(f"part-*.{self.kind}"):
                part.unlink()
        for path in self._own():
            if path != keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def is_own(self) -> bool:
        """Tell whether no other process has taken the job over."""
        return self.lock is None or self.lock.is_own()

    def check_own(self) -> None:
        """Raise BadInput where another process works at the job now."""
        if self.lock is not None:
            self.lock.check()

    @contextlib.contextmanager
    def new_file(self, path: Path, swept: bool = False) -> Iterator[Path]:
        """Give a temporary name for one of the job's files, as long as the job is ours."""
        self.check_own()
        with new_file(path, swept) as temporary:
            yield temporary
            self.check_own()

    def sweep(self) -> None:
        """Remove what a killed process left half-written, where a job was begun."""
        if self.record.is_file():
            sweep(self.job, "job.json")
            sweep(self.job / "done", "*")
            sweep(self.part(0).parent, "part-*")

    def _own(self) -> list[Path]:
        """What jobs write into their folder, as far as it is there."""
        patterns = ("job.json", "done", "parts", "prepared-*", ".job.json.new-*")
        return [path for pattern in patterns for path in self.job.glob(pattern)]

    @contextlib.contextmanager
    def joined(self, parts: Sequence[int]) -> Iterator[int]:
        """Make the one file of its parts, and yield its bytes.

        It stands at OUT, whole, when the block ends.
        """
        files = [self.part(number) for number in parts]
        with self.new_file(self.out) as temporary, writing(self.out):
            if self.kind == "parquet":
                _join_parquet(files, temporary)
            else:
                with temporary.open("wb") as stream:
                    for file in files:
                        with file.open("rb") as part:
                            shutil.copyfileobj(part, stream, 1 << 20)
            yield temporary.stat().st_size


def target_of(out: str) -> Target:
    """Find where `out` is. Raises BadInput where its name says no kind that is written."""
    if "://" in out:
        raise BadInput(
            f"{out}: rankings are written to a folder or a file of this machine's file systems; "
            "copy them from there"
        )
    path = Path(out).resolve()
    try:
        named = bool(out and path.name.encode())
    except UnicodeEncodeError:
        named = False
    if not named:
        raise BadInput(f"{out!r}: no name for a file or a folder")
    kind = KINDS.get(path.suffix.lower())
    is_new_folder = kind is None and not path.suffix and not path.exists()
    if path.is_dir() or out.endswith("/") or is_new_folder:
        return Target(path, "parquet", False)
    if kind is None:
        raise BadInput(
            f"{out}: unknown kind {path.suffix!r}; end it in {', '.join(KINDS)}, or in / for a "
            "folder of Parquet"
        )
    return Target(path, kind, True)


def _join_parquet(files: Sequence[Path], out: Path) -> None:
    """Join files into one, whose row groups are larger."""
    held: list[pa.Table] = []
    rows = size = 0
    with pq.ParquetWriter(out, pq.read_schema(files[0])) as writer:
        for file in files:
            # By pq.read_table the folders above would become columns, where they are `key=value`.
            with pq.ParquetFile(file) as part:
                held.append(part.read())
            rows += len(held[-1])
            size += held[-1].nbytes
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.concat_tables(held))
                held = []
                rows = size = 0
        if held:
            writer.write_table(pa.concat_tables(held))


def write_part(target: Target, number: int, made: pa.Table | Sequence[str]) -> int:
    """Write a part, whole or not at all: a table, or a run's lines. Returns its bytes."""
    with target.new_file(target.part(number), swept=True) as temporary:
        if target.kind == "parquet":
            pq.write_table(made, temporary)
        else:
            lines = _json_lines(made) if isinstance(made, pa.Table) else made
            temporary.write_bytes("".join(f"{line}\n" for line in lines).encode())
        return temporary.stat().st_size


def run_lines(
    query_ids: Sequence[str | None],
    doc_ids: Sequence[str | None],
    ranks: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> list[str]:
    """Write rows, a query's together and by rank, as lines: query, Q0, document, rank, score, tag.

    Each score is below the one before: evaluators go by the score alone and break ties by the
    documents' ids. What has the score of the one before is given the next lower float. What has
    none is given one that is lower by 1 or more.
    """
    written = np.empty(len(scores), np.float32)
    for start, stop in itertools.pairwise([*np.flatnonzero(ranks == 1), len(scores)]):
        written[start:stop] = _falling(scores[start:stop])
    return [
        f"{query_id} Q0 {doc_id} {rank} {score:.9g} {TAG}"
        for query_id, doc_id, rank, score in zip(query_ids, doc_ids, ranks, written, strict=True)
    ]


@np.errstate(over="ignore")  # beyond the last float lies infinity
def _falling(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores of one query by rank, each below the one before; NaN is what has none."""
    falling = scores.copy()
    last = np.float32(np.inf)
    for row, score in enumerate(scores):
        below = np.nextafter(last, -INFINITY)
        if not np.isnan(score):
            last = min(score, below)
        else:
            last = min(last - ONE, below) if np.isfinite(last) else -ONE
        falling[row] = last
    # At the lowest of all floats there is no lower one: those before it are higher instead.
    above = LOWEST
    for row in range(len(falling) - 1, -1, -1):
        falling[row] = max(falling[row], above)
        above = np.nextafter(falling[row], INFINITY)
    return falling


def _json_lines(table: pa.Table) -> list[str]:
    """A line of JSON a row; what is JSON already is written as it is."""
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        if is_json(field):
            values = ["null" if value is None else value for value in column.to_pylist()]
        else:
            exact = column.cast(_each(column.type, _in_utc)).cast(_each(column.type, _exact))
            found = exact.to_pylist()
            values = [json.dumps(_json(value), ensure_ascii=False) for value in found]
        name = json.dumps(field.name, ensure_ascii=False)
        columns.append([f"{name}: {value}" for value in values])
    return [f"{{{', '.join(row)}}}" for row in zip(*columns, strict=True)]


def _each(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with `change` made of each that is no list and no object, within them too."""
    if pa.types.is_map(kind):
        return pa.map_(_each(kind.key_type, change), _each(kind.item_type, change))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_each(kind.value_type, change), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_each(kind.value_type, change))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_each(field.type, change)) for field in kind])
    return change(kind)


def _in_utc(kind: pa.DataType) -> pa.DataType:
    """Times of any zone in UTC, the same everywhere: some machines know no zones."""
    return pa.timestamp(kind.unit, "UTC") if pa.types.is_timestamp(kind) and kind.tz else kind


def _exact(kind: pa.DataType) -> pa.DataType:
    """Times and decimals as text, as Arrow writes them, to the last digit."""
    if pa.types.is_duration(kind):
        return pa.int64()
    return pa.string() if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) else kind


def _json(value: Any) -> Any:
    """The value as JSON has it.

    Nulls for NaN and infinities, bytes in base64, and as text what is nothing else.
    """
    if isinstance(value, dict):
        return {str(name): _json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if value is None or isinstance(value, (str, int)) else str(value)
