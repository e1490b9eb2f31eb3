"""What a job reads: its inputs become Parquet files, and these are cut into parts."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xopt.runtime.data.columns import Columns, columns_of
from xopt.runtime.data.parquet import one_schema, open_parquet
from xopt.runtime.data.places import Place
from xopt.runtime.data.sources import Source
from xopt.runtime.data.tables import write_hf
from xopt.runtime.data.text import Row, read_rows
from xopt.runtime.errors import BadInput
from xopt.runtime.files import writing
from xopt.runtime.jobs.inputs.files import File, known_file
from xopt.runtime.jobs.inputs.gather import gather, gathered_columns
from xopt.runtime.jobs.inputs.parts import Slice, cut
from xopt.runtime.jobs.inputs.prepared import Kinds, fields_of, kinds_of, prepare, prepared_columns
from xopt.runtime.jobs.inputs.scan import scan

__all__ = ["COLLECTION", "Planned", "Wanted", "plan"]

log = logging.getLogger(__name__)

COLLECTION = ("query_id", "query", "doc_id", "text")  # the columns of what a collection gives


@dataclass(frozen=True)
class Wanted:
    """What a job wants of its inputs.

    columns: those that a user names. part_rows: rows of a part at most. ids_only: whether the ids
    are kept of the users' columns. words: whether ids are words of a TREC run, and nothing else is
    kept. split: that of Hugging Face datasets.
    """

    columns: Columns = field(default_factory=Columns)
    part_rows: int = 4096
    ids_only: bool = False
    words: bool = False
    split: str = "test"


@dataclass(frozen=True)
class Planned:
    """The files that a job reads, the users' columns that it keeps, and its parts.

    gathered: rows of queries whose candidates did not stand together.
    """

    files: tuple[File, ...]
    schema: pa.Schema
    parts: tuple[tuple[Slice, ...], ...]
    gathered: int

    @property
    def rows(self) -> int:
        return sum(stop - start for part in self.parts for _, start, stop in part)


@dataclass(frozen=True)
class _Input:
    """A source as a Parquet file, the users' columns in it, and which of these are scored."""

    file: File
    schema: pa.Schema
    columns: Columns


def plan(
    sources: Sequence[Source],
    read_collection: Callable[[Source], Iterable[Row]],
    wanted: Wanted,
    folder: Path,
) -> Planned:
    """Cut inputs into parts of whole queries.

    Parquet is read where it lies. Text, datasets, collections and files on HTTP are written as
    Parquet to `folder`. So are the rows of queries whose candidates do not stand together.
    `read_collection` reads collections in the columns `COLLECTION`. Raises BadInput where the
    inputs cannot be ranked.
    """
    found = _inputs(sources, read_collection, wanted, folder)
    _check_doc_ids(found, wanted)
    files = [each.file for each in found]
    ids = _ids(each.columns for each in found)
    schemas = [_kept(each, wanted) for each in found]
    schema = one_schema(schemas, [file.name for file in files], ids)
    scanned = scan(files, schema, wanted.words)
    runs = scanned.table()
    scattered = scanned.scattered()
    parts = cut(runs[~scattered], files, wanted.part_rows)
    rows = int((runs[scattered, 2] - runs[scattered, 1]).sum())
    if rows:
        log.info(
            "rerank: %d rows are of queries whose candidates lie apart; they are brought together",
            rows,
        )
        gathered = _gathered(files, runs[scattered], schema, folder)
        more = scan(gathered).table()
        more[:, 0] += len(files)
        files += gathered
        parts += cut(more, files, wanted.part_rows)
    if not parts:
        raise BadInput(f"{', '.join(source.name for source in sources):.160}: no candidates in it")
    return Planned(tuple(files), schema, tuple(tuple(part) for part in parts), rows)


def _check_doc_ids(found: Sequence[_Input], wanted: Wanted) -> None:
    """Raises BadInput where an input has no ids of documents, and they are to be written."""
    lacking = next((each.file.name for each in found if each.columns.doc_id is None), None)
    if lacking is not None and (wanted.ids_only or wanted.words):
        raise BadInput(
            f"{lacking}: no column 'doc_id', which `ids_only=True` and a run need; name it "
            "with `doc_id=`"
        )


def _gathered(
    files: Sequence[File], runs: NDArray[np.int64], schema: pa.Schema, folder: Path
) -> list[File]:
    """The rows of `runs`, a query's together, as files in `folder`."""
    columns = gathered_columns(files)
    name = "the inputs, a query's rows together"
    paths = gather(files, runs, schema, folder)
    return [known_file(name, Place(str(path)), columns)[0] for path in paths]


def _ids(columns: Iterable[Columns]) -> set[str]:
    """The columns of ids."""
    return {name for each in columns for name in (each.query_id, each.doc_id) if name is not None}


def _kept(each: _Input, wanted: Wanted) -> pa.Schema:
    """The users' columns that are kept of an input."""
    if wanted.words:
        return pa.schema([])
    if not wanted.ids_only:
        return each.schema
    kept = (each.columns.query_id or each.columns.query, each.columns.doc_id)
    return pa.schema([field for field in each.schema if field.name in kept])


def _inputs(
    sources: Sequence[Source],
    read_collection: Callable[[Source], Iterable[Row]],
    wanted: Wanted,
    folder: Path,
) -> list[_Input]:
    """The sources as Parquet files; those without rows are left out, with a warning."""
    texts: dict[Source, _Text] = {}
    for number, source in enumerate(sources):
        if source.kind == "text":
            local = _fetched(source, folder / f"fetched-{number:04d}")
            texts[source] = _Text.of_file(source.name, local)
        elif source.has_first_stage:
            texts[source] = _Text.of_collection(source, read_collection)
    columns = {
        source: columns_of(wanted.columns, list(text.kinds), source.name)
        for source, text in texts.items()
        if text.kinds
    }
    fields = fields_of([text.kinds for text in texts.values()], _ids(columns.values()))
    found = []
    for number, source in enumerate(sources):
        out = folder / f"source-{number:04d}.parquet"
        if source not in texts:
            found.append(_parquet(source, wanted, out))
        elif source in columns:
            found.append(texts[source].prepared(source.name, columns[source], fields, out))
        else:
            log.warning("rerank: %s: no rows in it", source.name)
    return found


def _parquet(source: Source, wanted: Wanted, out: Path) -> _Input:
    """A source that is Parquet, or a dataset that is written so."""
    if source.kind == "hf":
        write_hf(source.name, wanted.split, out)
        place = Place(str(out.resolve()))
    else:
        assert source.place is not None
        place = source.place
        # Whether a server reads from any place on is seen too late.
        if place.path.startswith(("http://", "https://")):
            place = _fetched(source, out)
    with open_parquet(source.name, place) as opened:
        columns = columns_of(wanted.columns, opened.schema_arrow.names, source.name)
    file, schema = known_file(source.name, place, columns)
    return _Input(file, schema, columns)


def _fetched(source: Source, copy: Path) -> Place:
    """A file of this machine with what stands on a store: a copy."""
    assert source.place is not None
    if source.place.is_local:
        return source.place
    with writing(copy), source.place.open() as stream, copy.open("wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
    return Place(str(copy.resolve()))


@dataclass(frozen=True)
class _Text:
    """Rows that are written as Parquet, and of what kinds their values are by column."""

    read: Callable[[], Iterable[Row]]
    kinds: Kinds

    @staticmethod
    def of_file(name: str, place: Place) -> _Text:
        """A file of text, which is read once before, for the kinds of its values."""
        return _Text(lambda: read_rows(name, place), kinds_of(read_rows(name, place)))

    @staticmethod
    def of_collection(source: Source, read: Callable[[Source], Iterable[Row]]) -> _Text:
        return _Text(lambda: read(source), {name: {"str"} for name in COLLECTION})

    def prepared(
        self, name: str, columns: Columns, fields: dict[str, pa.Field], out: Path
    ) -> _Input:
        own = [fields[column] for column in self.kinds]
        prepare(self.read, columns, own, out)
        written = prepared_columns(columns)
        file, _ = known_file(name, Place(str(out.resolve())), written)
        return _Input(file, pa.schema(own), columns)
