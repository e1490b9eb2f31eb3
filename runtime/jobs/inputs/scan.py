"""Where each query's candidates lie, and whether the inputs can be ranked at all: seen before
anything is scored.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xopt.runtime.data.fields import first_score_of, id_of, query_or_null
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.jobs.inputs.columns import PREPARED
from xopt.runtime.jobs.inputs.files import File, open_file, plain

__all__ = ["Runs", "scan"]

ROWS_AT_ONCE = 1 << 12


class Runs:
    """Rows that follow each other and are of one query: their files, first rows, ends and
    queries, by hash.
    """

    def __init__(self) -> None:
        self._values = array("q")

    def add(self, file: int, start: int, stop: int, query: int) -> None:
        """Note rows, which go on a run where they follow it in its file."""
        if (
            self._values
            and self._values[-4] == file
            and self._values[-2] == start
            and self._values[-1] == query
        ):
            self._values[-2] = stop
        else:
            self._values.extend((file, start, stop, query))

    def table(self) -> NDArray[np.int64]:
        """int64[n, 4]: file, first row, end, query."""
        return np.array(self._values, np.int64).reshape(-1, 4)

    def scattered(self) -> NDArray[np.bool_]:
        """Which runs are of queries whose rows do not all follow each other, from one file to the
        next included.
        """
        queries = self.table()[:, 3]
        first = np.ones(len(queries), bool)
        first[1:] = queries[1:] != queries[:-1]
        starts, counts = np.unique(queries[first], return_counts=True)
        return np.isin(queries, starts[counts > 1])


def scan(files: Sequence[File], names: Sequence[str] = (), words: bool = False) -> Runs:
    """Read the ids and queries of all files, and on this machine the columns `names` too, to see
    that they are whole.

    Raises BadInput, with the row, where an id is null or blank, stands for two queries or, with
    `words`, holds blanks, where a document stands twice among those of a query that follow each
    other, and for a first-stage score that is no finite number.
    """
    runs, queries = Runs(), _Queries(words)
    for number, file in enumerate(files):
        with open_file(file.path, file.name) as opened:
            own = file.columns
            mine = [n for n in (own.query_id, own.query, own.doc_id, own.first) if n is not None]
            needed = mine if "://" in file.path else [*own.names(), *names]
            chosen = [name for name in opened.schema_arrow.names if name in needed]
            at = 0
            for batch in _batches(opened.iter_batches(ROWS_AT_ONCE, columns=chosen), file):
                for start, stop, query in queries.seen(batch, file, at):
                    runs.add(number, at + start, at + stop, query)
                at += batch.num_rows
    return runs


def _batches(batches: Iterator[pa.RecordBatch], file: File) -> Iterator[pa.RecordBatch]:
    at = 0
    try:
        for batch in batches:
            batch.validate(full=True)
            yield plain(batch)
            at += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{file.name}: is damaged behind row {at} ({first_line(error)}); mend it, and begin again"
        ) from error


class _Queries:
    """Which texts the ids stand for, and the documents of the query at hand."""

    def __init__(self, words: bool) -> None:
        self.words = words
        self.texts: dict[int, int] = {}  # hashes: of ten million queries they are a gigabyte
        self.at: int | None = None
        self.documents: set[str] = set()

    def seen(self, batch: pa.RecordBatch, file: File, at: int) -> Iterator[tuple[int, int, int]]:
        """The runs of a batch: first row, end, and hash of the query's id."""
        columns = file.columns
        ids = batch.column(columns.query_id or columns.query)
        texts = batch.column(columns.query)
        documents = batch.column(columns.doc_id) if columns.doc_id is not None else None
        if columns.first is not None:
            for row, value in enumerate(batch.column(columns.first).to_pylist(), start=at):
                if type(value) is not float or not math.isfinite(value):
                    first_score_of(value, columns.first, f"{file.name}: row {row}")
        changes = _changes(ids) | _changes(texts)
        starts = np.flatnonzero(changes)
        for start, stop, value, text in zip(
            starts,
            [*starts[1:], len(ids)],
            ids.take(starts).to_pylist(),
            texts.take(starts).to_pylist(),
            strict=True,
        ):
            where = f"{file.name}: row {at + start}"
            query_text = query_or_null(text, columns.query, where)
            named = columns.query_id is not None and not (
                value is None and columns.query_id.startswith(PREPARED)
            )
            nameless = not named and query_text is None
            name = None if nameless else id_of(value, columns.query_id or columns.query, where)
            query = _hash(name)
            if self.words:
                if name is None:
                    raise BadInput(
                        f"{where}: a null query without an id, which a run cannot have; write .jsonl"
                    )
                _check_word(str(value), where)
            if query != self.at:
                self.at, self.documents = query, set()
            if query_text is not None and self.texts.setdefault(query, _hash(query_text)) != _hash(
                query_text
            ):
                raise BadInput(
                    f"{where}: query id {value!r:.60} stands for another query above; an id stands for one"
                )
            if documents is not None:
                self._documents(documents[start:stop].to_pylist(), file, at + int(start), name)
            yield int(start), int(stop), query

    def _documents(
        self, found: Sequence[object], file: File, first: int, query: str | None
    ) -> None:
        """Rows without a query are not candidates of one, and may be of one document."""
        for row, value in enumerate(found, start=first):
            name = str(value)
            if value is None or not name.strip() or (query is not None and name in self.documents):
                where = f"{file.name}: row {row}"
                name = id_of(value, str(file.columns.doc_id), where)
                raise BadInput(
                    f"{where}: document {name!r:.60} stands twice among the candidates of {query!r:.60}"
                )
            if self.words:
                _check_word(name, f"{file.name}: row {row}")
            self.documents.add(name)


def _hash(text: str | None) -> int:
    """Eight bytes of a hash that is the same in every process: it says in which order queries are
    gathered.
    """
    kind = b"null" if text is None else b"text"
    digest = hashlib.blake2b((text or "").encode(), digest_size=8, person=kind).digest()
    return int.from_bytes(digest, "little", signed=True)


def _check_word(name: str, where: str) -> None:
    if name.split() != [name]:
        raise BadInput(
            f"{where}: id {name!r:.60} holds blanks, which a TREC run cannot; write .jsonl or .parquet"
        )


def _changes(column: pa.Array) -> NDArray[np.bool_]:
    """Where a column's value is another than in the row before; the first row's is."""
    changes = np.ones(len(column), bool)
    if len(column) > 1:
        later, earlier = column[1:], column[:-1]
        same = pc.fill_null(pc.equal(later, earlier), False) if column.type != pa.null() else None
        both = pc.and_(pc.is_null(later), pc.is_null(earlier))
        changes[1:] = ~np.asarray(both if same is None else pc.or_(same, both))
    return changes
