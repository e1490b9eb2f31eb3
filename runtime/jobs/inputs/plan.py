"""A job is cut into parts, before anything is scored."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from xopt.runtime.data.tables import Values, read_rows
from xopt.runtime.errors import BadInput
from xopt.runtime.files import writing
from xopt.runtime.jobs.inputs.columns import PREPARED, Columns, columns_of
from xopt.runtime.jobs.inputs.files import File, known_file, one_schema, open_file
from xopt.runtime.jobs.inputs.gather import gather, gathered_columns
from xopt.runtime.jobs.inputs.parts import cut
from xopt.runtime.jobs.inputs.prepared import prepare, prepared_columns
from xopt.runtime.jobs.inputs.scan import scan
from xopt.runtime.jobs.inputs.sources import Source, located

__all__ = ["Planned", "plan"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """The files that a job reads, the users' columns that it keeps, its parts, and how many rows were gathered."""

    files: tuple[File, ...]
    schema: pa.Schema
    parts: tuple[tuple[tuple[int, int, int], ...], ...]
    gathered: int

    @property
    def rows(self) -> int:
        return sum(stop - start for part in self.parts for _, start, stop in part)


def plan(
    sources: Sequence[Source],
    read: Callable[[Source], Iterable[Values]],
    asked: Columns,
    folder: Path,
    device: str,
    ids_only: bool = False,
    words: bool = False,
) -> Planned:
    """Cut inputs into parts of whole queries. `read` reads collections; what has to be written goes to `folder`.

    Parquet is read where it lies. Tables in text and collections are written as Parquet, and so are the rows of queries
    whose candidates do not stand together. Raises BadInput where the inputs cannot be ranked.
    """
    found = [_file(source, read, asked, folder, number) for number, source in enumerate(sources)]
    files = [file for file, _ in found]
    kept = None
    if ids_only or words:
        lacking = next((file for file in files if file.columns.doc_id is None), None)
        if lacking is not None:
            raise BadInput(
                f"{lacking.name}: no column 'doc_id', which --ids-only and a run need; name it with --doc-id"
            )
    if ids_only:
        own = [columns_of(asked, schema.names, file.name) for file, schema in found]
        kept = [str(name) for columns in own for name in (columns.query_id or columns.query, columns.doc_id)]
    schema = one_schema([schema for _, schema in found], [file.name for file in files], kept)
    scanned = scan(files, words)
    runs, scattered = scanned.table(), scanned.scattered()
    parts = cut(runs[~scattered], files, device)
    rows = int((runs[scattered, 2] - runs[scattered, 1]).sum())
    if rows:
        log.info("rerank: %d rows are of queries whose candidates lie apart; they are brought together", rows)
        made = gather(files, runs[scattered], schema, folder)
        columns = gathered_columns(files)
        together = [known_file("the inputs, a query's rows together", str(path), columns)[0] for path in made]
        more = scan(together, words).table()
        more[:, 0] += len(files)
        files += together
        parts += cut(more, files, device)
    if not parts:
        raise BadInput(f"{', '.join(source.name for source in sources):.160}: no candidates in it")
    return Planned(tuple(files), schema, tuple(tuple(part) for part in parts), rows)


def _file(
    source: Source, read: Callable[[Source], Iterable[Values]], asked: Columns, folder: Path, number: int
) -> tuple[File, pa.Schema]:
    """A source as Parquet, and the users' columns in it."""
    if source.kind == "parquet":
        path = source.name if "://" in source.name else str(Path(source.name).resolve())
        with open_file(path, source.name) as opened:
            columns = columns_of(asked, opened.schema_arrow.names, source.name)
        return known_file(source.name, path, columns)
    out = folder / f"source-{number:04d}.parquet"
    if source.kind == "table":
        local = _local(source.name, folder)
        columns = prepare(lambda: read_rows(local), asked, source.name, out)
    else:
        columns = prepare(lambda: read(source), asked, source.name, out)
    file, schema = known_file(source.name, str(out.resolve()), prepared_columns(columns))
    return file, pa.schema([field for field in schema if not field.name.startswith(PREPARED)])


def _local(name: str, folder: Path) -> Path:
    """A file of this machine with what stands on a store."""
    if "://" not in name:
        return Path(name)
    system, path = located(name)
    copy = folder / f"fetched-{Path(path).name}"
    with writing(copy), system.open_input_stream(path, compression=None) as stream, copy.open("wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
    return copy
