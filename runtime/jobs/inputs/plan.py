"""A job is cut into parts, before anything is scored."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from xopt.runtime.data.candidates import SPLIT
from xopt.runtime.data.tables import Values, read_table, write_hf
from xopt.runtime.errors import BadInput
from xopt.runtime.files import writing
from xopt.runtime.jobs.inputs.columns import Columns, columns_of
from xopt.runtime.jobs.inputs.files import File, known_file, one_schema, open_file
from xopt.runtime.jobs.inputs.gather import gather, gathered_columns
from xopt.runtime.jobs.inputs.parts import cut
from xopt.runtime.jobs.inputs.prepared import Kinds, fields_of, kinds_of, prepare, prepared_columns
from xopt.runtime.jobs.inputs.scan import scan
from xopt.runtime.jobs.inputs.sources import Source, located

__all__ = ["COLLECTION", "Planned", "plan"]

log = logging.getLogger(__name__)

COLLECTION = ("query_id", "query", "doc_id", "text")


@dataclass(frozen=True)
class Planned:
    """The files that a job reads, the users' columns that it keeps, its parts, and how many rows
    were gathered.
    """

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
    part_rows: int,
    ids_only: bool = False,
    words: bool = False,
    split: str = SPLIT,
) -> Planned:
    """Cut inputs into parts of whole queries, `part_rows` rows each at most.

    `read` reads collections, in the columns `COLLECTION`; `split` is that of `hf:` datasets; what
    has to be written goes to `folder`. Parquet is read where it lies. Tables in text, datasets
    and collections are written as Parquet, and so are the rows of queries whose candidates do not
    stand together. Raises BadInput where the inputs cannot be ranked.
    """
    tables: dict[Source, _Table] = {}
    paths: dict[Source, str] = {}
    for number, source in enumerate(sources):
        if source.kind == "hf":
            paths[source] = str((folder / f"source-{number:04d}.parquet").resolve())
            write_hf(source.name.removeprefix("hf:"), split, Path(paths[source]))
        elif source.kind != "parquet":
            tables[source] = _Table(source, read, folder, number)
    named = {
        s: columns_of(asked, list(table.kinds), s.name)
        for s, table in tables.items()
        if table.kinds
    }
    fields = fields_of([table.kinds for table in tables.values()], _ids(named.values()))
    found = [
        tables[s].prepared(named.get(s), fields)
        if s in tables
        else _parquet(s, asked, paths.get(s))
        for s in sources
    ]
    whole = [item for item in found if item is not None]
    files, schemas = [file for file, _, _ in whole], [schema for _, schema, _ in whole]
    if ids_only or words:
        lacking = next((file for file in files if file.columns.doc_id is None), None)
        if lacking is not None:
            raise BadInput(
                f"{lacking.name}: no column 'doc_id', which --ids-only and a run need; name it with --doc-id"
            )
    kept: list[str] | None = [] if words else None
    if ids_only and not words:
        kept = [
            str(name)
            for _, _, columns in whole
            for name in (columns.query_id or columns.query, columns.doc_id)
        ]
    schema = one_schema(
        schemas, [file.name for file in files], kept, _ids(columns for _, _, columns in whole)
    )
    scanned = scan(files, schema.names, words)
    runs, scattered = scanned.table(), scanned.scattered()
    parts = cut(runs[~scattered], files, part_rows)
    rows = int((runs[scattered, 2] - runs[scattered, 1]).sum())
    if rows:
        log.info(
            "rerank: %d rows are of queries whose candidates lie apart; they are brought together",
            rows,
        )
        made = gather(files, runs[scattered], schema, folder)
        columns = gathered_columns(files)
        together = [
            known_file("the inputs, a query's rows together", str(path), columns)[0]
            for path in made
        ]
        more = scan(together).table()
        more[:, 0] += len(files)
        files += together
        parts += cut(more, files, part_rows)
    if not parts:
        raise BadInput(f"{', '.join(source.name for source in sources):.160}: no candidates in it")
    return Planned(tuple(files), schema, tuple(tuple(part) for part in parts), rows)


def _ids(columns: Iterable[Columns]) -> set[str]:
    """The columns of ids."""
    return {name for each in columns for name in (each.query_id, each.doc_id) if name is not None}


# a source as Parquet, the users' columns in it, and those that are scored
Found = tuple[File, pa.Schema, Columns]


def _parquet(source: Source, asked: Columns, path: str | None) -> Found:
    path = path or (source.name if "://" in source.name else str(Path(source.name).resolve()))
    with open_file(path, source.name) as opened:
        columns = columns_of(asked, opened.schema_arrow.names, source.name)
    return *known_file(source.name, path, columns), columns


class _Table:
    """A source that is written as Parquet. A table is read once before, for the kinds of its
    values.
    """

    def __init__(
        self, source: Source, read: Callable[[Source], Iterable[Values]], folder: Path, number: int
    ) -> None:
        self.source, self._out = source, folder / f"source-{number:04d}.parquet"
        self._read: Callable[[], Iterable[Values]] = lambda: read(source)
        self.kinds: Kinds = {name: {"str"} for name in COLLECTION}
        if source.kind == "table":
            local = _local(source.name, folder / f"fetched-{number:04d}-{Path(source.name).name}")
            self._read = lambda: read_table(local)
            self.kinds = kinds_of(self._read())

    def prepared(self, columns: Columns | None, fields: dict[str, pa.Field]) -> Found | None:
        """The source as Parquet, if there are rows in it."""
        if columns is None:
            log.warning("rerank: %s: no rows in it", self.source.name)
            return None
        own = [fields[name] for name in self.kinds]
        prepare(self._read, columns, own, self._out)
        file, _ = known_file(self.source.name, str(self._out.resolve()), prepared_columns(columns))
        return file, pa.schema(own), columns


def _local(name: str, copy: Path) -> Path:
    """A file of this machine with what stands on a store: a `copy`."""
    if "://" not in name:
        return Path(name)
    system, path = located(name)
    with (
        writing(copy),
        system.open_input_stream(path, compression=None) as stream,
        copy.open("wb") as out,
    ):
        shutil.copyfileobj(stream, out, 1 << 20)
    return copy
