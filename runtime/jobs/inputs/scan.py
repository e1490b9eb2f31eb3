"""Where each query's candidates lie, and whether the inputs can be ranked at all.

This is seen before anything is scored.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xopt.runtime.data.parquet import batches_of, conformed, damaged, open_parquet
from xopt.runtime.errors import BadInput
from xopt.runtime.jobs.inputs.files import File, pairs_at

__all__ = ["Runs", "scan"]


class Runs:
    """Rows that follow each other and are of one query: file, first row, end and query, by hash."""

    def __init__(self) -> None:
        self._values = array("q")

    def add(self, file: int, start: int, stop: int, query: int) -> None:
        """Note rows, which go on a run where they follow it in its file."""
        goes_on = len(self._values) > 0 and self._values[-4] == file
        if goes_on and self._values[-2] == start and self._values[-1] == query:
            self._values[-2] = stop
        else:
            self._values.extend((file, start, stop, query))

    def table(self) -> NDArray[np.int64]:
        """Give int64[n, 4]: file, first row, end, query."""
        return np.array(self._values, np.int64).reshape(-1, 4)

    def scattered(self) -> NDArray[np.bool_]:
        """Tell which runs are of queries whose rows do not all follow each other.

        From the end of one file to the beginning of the next they do.
        """
        queries = self.table()[:, 3]
        first = np.ones(len(queries), bool)
        first[1:] = queries[1:] != queries[:-1]
        starts, counts = np.unique(queries[first], return_counts=True)
        return np.isin(queries, starts[counts > 1])


NOTHING = pa.schema([])


def scan(files: Sequence[File], schema: pa.Schema = NOTHING, words: bool = False) -> Runs:
    """Read the ids and queries of all files, and on this machine the columns of `schema` too.

    Raises BadInput where a file is damaged, and with the row for

    - an id that is null or blank, stands for two queries or, with `words`, holds blanks;
    - a document that stands twice among those of a query that follow each other;
    - a first-stage score that is no finite number.
    """
    runs = Runs()
    queries = _Queries(words)
    for number, file in enumerate(files):
        seen = file
        kept = schema
        wanted = [*file.columns.names(), *schema.names]
        if not file.place.is_local:  # texts and others are fetched once, to be scored
            seen = replace(file, columns=replace(file.columns, text=None, title=None))
            wanted = seen.columns.names()
            kept = NOTHING
        with open_parquet(file.name, file.place) as opened:
            there = opened.schema_arrow
            chosen = [name for name in there.names if name in wanted]
            at = 0
            try:
                for batch in batches_of(opened, chosen):
                    batch.validate(full=True)
                    conformed(pa.Table.from_batches([batch]), kept, file.name)
                    for start, stop, query in queries.seen(batch, seen, at):
                        runs.add(number, start, stop, query)
                    at += batch.num_rows
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise damaged(file.name, at, there, error) from error
    return runs


class _Queries:
    """Which texts the ids stand for, and the documents of the query at hand."""

    def __init__(self, words: bool) -> None:
        self.words = words
        self.texts: dict[int, int] = {}  # hashes: of ten million queries they are a gigabyte
        self.at: int | None = None
        self.documents: set[str] = set()

    def seen(self, batch: pa.RecordBatch, file: File, at: int) -> Iterator[tuple[int, int, int]]:
        """Give the runs of a batch that begins at a row: first row, end, hash of the query's id."""
        pairs = pairs_at(pa.Table.from_batches([batch]), file, range(at, at + batch.num_rows))
        ids = pairs.column("query_id").combine_chunks()
        texts = pairs.column("query").combine_chunks()
        documents = pairs.column("doc_id") if file.columns.doc_id is not None else None
        starts = np.flatnonzero(_changes(ids) | _changes(texts))
        stops = [*starts[1:].tolist(), len(ids)]
        names = ids.take(starts).to_pylist()
        queries = texts.take(starts).to_pylist()
        for start, stop, name, text in zip(starts.tolist(), stops, names, queries, strict=True):
            where = f"{file.name}: row {at + start}"
            query = self._query(name, text, where)
            if documents is not None:
                self._documents(documents[start:stop].to_pylist(), file.name, at + start, name)
            yield at + start, at + stop, query

    def _query(self, name: str | None, text: str | None, where: str) -> int:
        """The hash of a query's id, whose text is always the same."""
        if self.words:
            if name is None:
                raise BadInput(
                    f"{where}: a null query without an id, which a run cannot have; write .jsonl"
                )
            _check_word(name, where)
        query = _hash(name)
        if query != self.at:
            self.at = query
            self.documents = set()
        if text is not None:
            hashed = _hash(text)
            if self.texts.setdefault(query, hashed) != hashed:
                raise BadInput(
                    f"{where}: query id {name!r:.60} stands for another query above; an id stands "
                    "for one"
                )
        return query

    def _documents(self, found: Sequence[str], name: str, first: int, query: str | None) -> None:
        """Rows without a query are not candidates of one, and may be of one document."""
        for row, doc_id in enumerate(found, start=first):
            if query is not None and doc_id in self.documents:
                raise BadInput(
                    f"{name}: row {row}: document {doc_id!r:.60} stands twice among the candidates "
                    f"of {query!r:.60}; keep one"
                )
            if self.words:
                _check_word(doc_id, f"{name}: row {row}")
            self.documents.add(doc_id)


def _hash(text: str | None) -> int:
    """Eight bytes of a hash: the same in every process, since it says in which order queries go."""
    kind = b"null" if text is None else b"text"
    digest = hashlib.blake2b((text or "").encode(), digest_size=8, person=kind).digest()
    return int.from_bytes(digest, "little", signed=True)


def _check_word(name: str, where: str) -> None:
    if name.split() != [name]:
        raise BadInput(
            f"{where}: id {name!r:.60} holds blanks, which a TREC run cannot; write .jsonl or "
            ".parquet"
        )


def _changes(column: pa.Array) -> NDArray[np.bool_]:
    """Where a column's value is another than in the row before; the first row's is."""
    changes = np.ones(len(column), bool)
    if len(column) > 1:
        later = column[1:]
        earlier = column[:-1]
        same = pc.fill_null(pc.equal(later, earlier), False)
        both_null = pc.and_(pc.is_null(later), pc.is_null(earlier))
        changes[1:] = ~np.asarray(pc.or_(same, both_null))
    return changes
