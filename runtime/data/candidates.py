"""Candidates: for each query, the documents to rank."""

from __future__ import annotations

import hashlib
import logging
import sysconfig
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from xopt.runtime.data.collection import first_stage, read_beir, read_irds
from xopt.runtime.data.columns import Columns, check_types, columns_of, pairs_of
from xopt.runtime.data.docstrings import Docstring, read_docstrings
from xopt.runtime.data.fields import Judgements, Qrels, Texts
from xopt.runtime.data.places import shown
from xopt.runtime.data.sources import DEMO, Source, find_sources
from xopt.runtime.data.tables import open_table
from xopt.runtime.data.trec import read_run
from xopt.runtime.errors import BadInput
from xopt.runtime.progress import progress
from xopt.runtime.scoring.encode import Pair

log = logging.getLogger(__name__)

__all__ = [
    "DEMO_QUERIES",
    "Candidates",
    "Row",
    "check_options",
    "demo_candidates",
    "preparing",
    "query_hash",
    "read_candidates",
    "read_collection",
]

DEMO_QUERIES, DEMO_DEPTH = 512, 25
COLLECTION_DEPTH = 100
PREPARING = 64  # queries at most that calibrating, tuning and steering may see, and no verdict
SPLIT = "test"
# Parts of the standard library that some distributions leave out, and what is no documentation.
NOT_EVERYWHERE = frozenset(
    [
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "lib2to3",
        "distutils",
        "ensurepip",
    ]
)
GRADE = "relevance"  # the column of grades
USUAL = Columns()  # the usual columns of a table


@dataclass(frozen=True)
class Row:
    """One pair to score: a query and one of its candidates."""

    query_id: str
    query: str
    doc_id: str
    text: str
    first_score: float | None = None  # the first stage's


@dataclass(frozen=True)
class Candidates:
    """Pairs to score, and the judgements on them.

    - `name`: what the data is called in results.
    - `rows`: the pairs. Those of a query stand together, in the first stage's order.
    - `qrels`: grades by query id and document id, if there are any.
    """

    name: str
    rows: tuple[Row, ...]
    qrels: Qrels = field(default_factory=dict, hash=False)

    @property
    def pairs(self) -> list[Pair]:
        """Return the texts (query, document) of each row."""
        return [(row.query, row.text) for row in self.rows]

    @property
    def first_scores(self) -> list[float] | None:
        """Return the first stage's scores, or None unless each row has one."""
        scores = [row.first_score for row in self.rows if row.first_score is not None]
        return scores if scores and len(scores) == len(self.rows) else None

    def groups(self) -> dict[str, slice]:
        """Return the rows of each query as a slice, by query id."""
        groups: dict[str, slice] = {}
        for i, row in enumerate(self.rows):
            start = groups[row.query_id].start if row.query_id in groups else i
            groups[row.query_id] = slice(start, i + 1)
        return groups

    def head(self, pairs: int) -> Candidates:
        """Keep the first `pairs` rows, with the qrels of their queries."""
        return self._with(self.rows[:pairs])

    def whole(self, pairs: int) -> Candidates:
        """Keep the first queries that have `pairs` rows at most, at least one, with all rows."""
        stops = [rows.stop for rows in self.groups().values()]
        most = max(pairs, stops[0])
        return self._with(self.rows[: max(stop for stop in stops if stop <= most)])

    def cut(self, depth: int | None) -> Candidates:
        """Keep the first `depth` candidates of each query, or all."""
        groups = self.groups().values()
        return self._with(tuple(row for rows in groups for row in self.rows[rows][:depth]))

    def draw(self, queries: int | None) -> Candidates:
        """Keep this many queries, drawn at random and always the same, in the order given."""
        groups = list(self.groups().values())
        if queries is None or queries >= len(groups):
            return self
        drawn = np.sort(np.random.default_rng(0).permutation(len(groups))[:queries])
        return self._with(tuple(row for i in drawn for row in self.rows[groups[i]]))

    def shuffled(self) -> Candidates:
        """Put the queries, each with its candidates, in a random order that is always the same."""
        groups = list(self.groups().values())
        order = np.random.default_rng(1).permutation(len(groups))
        return self._with(tuple(row for i in order for row in self.rows[groups[i]]))

    def between(self, first: int, last: int | None) -> Candidates:
        """Keep the queries from number `first` to before number `last`, or to the end."""
        rows = list(self.groups().values())[first:last]
        return self._with(self.rows[rows[0].start : rows[-1].stop] if rows else ())

    def without(self, hashes: Collection[str]) -> Candidates:
        """Keep the queries whose `query_hash` is none of these."""
        if not hashes:
            return self
        return self._with(tuple(row for row in self.rows if query_hash(row.query) not in hashes))

    def split(self) -> tuple[Candidates, Candidates]:
        """Split off a part to prepare with (calibrate, tune, steer); the rest is to judge by.

        They share no query. A fifth of the queries, `PREPARING` at most, prepares, chosen by their
        texts: ids of one text stay together. A single query is judged by, and none prepares.
        """
        hashes = {row.query_id: query_hash(row.query) for row in self.rows}
        texts = sorted(set(hashes.values()))
        count = min(PREPARING, max(1, len(texts) // 5)) if len(texts) > 1 else 0
        prepares = set(texts[:count])
        chosen = tuple(row for row in self.rows if hashes[row.query_id] in prepares)
        others = tuple(row for row in self.rows if hashes[row.query_id] not in prepares)
        return self._with(chosen), self._with(others)

    def _with(self, rows: tuple[Row, ...]) -> Candidates:
        kept = {row.query_id for row in rows}
        qrels = {q: judged for q, judged in self.qrels.items() if q in kept}
        return Candidates(self.name, rows, qrels)


def preparing(candidates: Candidates) -> Candidates:
    """Give the part of candidates to prepare with.

    With a single query nothing is left to prepare with: the demo data's part is used instead, with
    a warning.
    """
    part = candidates.split()[0]
    if part.rows:
        return part
    log.warning(
        "%s: its only query is left to judge by; the demo data calibrate and tune", candidates.name
    )
    return demo_candidates().split()[0]


def query_hash(query: str) -> str:
    """Give twelve digits of a query's sha256: by them a manifest tells which queries calibrated."""
    return hashlib.sha256(query.encode()).hexdigest()[:12]


def read_candidates(
    data: str = DEMO,
    *,
    run: str | None = None,
    split: str | None = None,
    depth: int | None = None,
    queries: int | None = None,
    columns: Columns = USUAL,
    documents: bool = False,
) -> Candidates:
    """Read candidates from `data`.

    - `data`: `demo`, the built-in data; a collection; or a table. A collection is a BEIR folder, or
      `irds:ID` of ir_datasets. A table is a file, a folder or a pattern of files, here or on a
      store, or `hf:ID[:CONFIG]`.
    - `run`: a TREC run file, the first stage of a collection.
    - `split`: the split of a BEIR folder's qrels or of an `hf:` dataset, by default `test`.
    - `depth`: candidates per query. Of a collection 100 unless given, of a table all.
    - `queries`: draw this many queries, always the same ones.
    - `columns`: the columns of a table.
    - `documents`: a table needs no queries.

    The candidates of a collection are the best documents of each query by `run`. Without one they
    are the dataset's own scored documents, or BM25's for the queries that the qrels judge. Each row
    of a table is a candidate.

    Raises BadInput where the data is missing, empty or has a bad row. Warns of what is left out.
    """
    name = shown(data)
    sources = _find_sources(data, run, split, columns)
    with progress(f"reading {name}"):
        if sources[0].has_first_stage and len(sources) == 1:
            found = read_collection(sources[0], run, split, depth)
        else:
            found = _from_tables(data, sources, split or SPLIT, columns, documents)
    _check_found(found, name)
    if documents:
        _check_documents(found, name, depth, queries)
    _warn_of_strangers(found)
    return found.cut(depth).draw(queries)


def _find_sources(data: str, run: str | None, split: str | None, columns: Columns) -> list[Source]:
    """Return where the data is. Raises BadInput for an option that it has no use for."""
    sources = find_sources([data])
    for source in sources:
        check_options(source, run, split, columns)
    return sources


def read_collection(
    source: Source, run: str | None, split: str | None, depth: int | None
) -> Candidates:
    """Read the candidates of a source with a first stage; see `read_candidates`."""
    if source.kind == "demo":
        return demo_candidates().cut(depth)
    return _collection(source, run, split or SPLIT, depth or COLLECTION_DEPTH)


def check_options(
    source: Source, run: str | None, split: str | None, columns: Columns = USUAL
) -> None:
    """Raises BadInput for an option that the data has no use for."""
    if split and source.kind not in ("collection", "hf"):
        raise BadInput(
            f"{source.name}: has no splits to choose from; `split=` is for BEIR folders and hf: "
            "datasets"
        )
    if run is not None and source.kind not in ("collection", "irds"):
        raise BadInput(
            f"{source.name}: `run=` names documents of a BEIR folder or an irds: dataset; this is "
            "neither"
        )
    named = columns.names()
    if named and source.has_first_stage:
        raise BadInput(
            f"{source.name}: has no column {named[0]!r}; columns are named of tables, and this is "
            "none"
        )


def _check_found(found: Candidates, name: str) -> None:
    """Raises BadInput where there are none."""
    if not found.rows:
        needs = "each row needs query and text, of CSV and TSV below a header"
        raise BadInput(f"{name}: no candidates in it; {needs}")


def _check_documents(found: Candidates, name: str, depth: int | None, queries: int | None) -> None:
    """Raises BadInput where documents are mixed with candidates, or have queries to count."""
    alone = sum(not row.query for row in found.rows)
    if alone and alone < len(found.rows):
        raise BadInput(
            f"{name}: {alone} of {len(found.rows)} rows have no query; give documents alone, or a "
            "query each"
        )
    if alone and (depth or queries):
        option = "`depth=`" if depth else "`queries=`"
        raise BadInput(f"{name}: has no queries; leave out {option}, which counts for each")


def demo_candidates(queries: int = DEMO_QUERIES, depth: int = DEMO_DEPTH) -> Candidates:
    """Docstrings of the running Python's standard library: summary line as query, body as document.

    A query's candidates are the `depth` nearest bodies by BM25. Its own body, the relevant one, is
    among them: where BM25 leaves it out, it takes the last place. Deterministic for a Python
    version.
    """
    from xopt.runtime.data.bm25 import bm25_ranking

    docs = _standard_library()
    if len(docs) < depth:
        raise BadInput(
            "demo: this Python has no readable source of its standard library; give `data=` a file"
        )
    bodies = [doc.body for doc in docs]
    summaries = [doc.summary for doc in docs]
    # In an order that no folder or file has to do with.
    mixed = sorted(range(len(docs)), key=lambda i: hashlib.sha256(summaries[i].encode()).digest())
    chosen = mixed[:queries]
    rankings = bm25_ranking(bodies, [summaries[own] for own in chosen], depth)
    rows = []
    for own, ranking in zip(chosen, rankings, strict=True):
        ranked = ranking if own in ranking else [*ranking[:-1], own]
        rows += [Row(docs[own].where, summaries[own], docs[i].where, bodies[i]) for i in ranked]
    return Candidates("demo", tuple(rows), {docs[i].where: {docs[i].where: 1} for i in chosen})


@cache
def _standard_library() -> tuple[Docstring, ...]:
    return tuple(read_docstrings(Path(sysconfig.get_paths()["stdlib"]), NOT_EVERYWHERE))


def _collection(source: Source, run: str | None, split: str, depth: int) -> Candidates:
    given = read_run(run) if run is not None else None
    if source.place is None:
        collection = read_irds(source.name.removeprefix("irds:"), given)
    else:
        collection = read_beir(source.name, source.place, split, given)
    rows = []
    run_name = shown(run) if run is not None else None
    for query_id, ranking in first_stage(collection, depth, run_name):
        query = collection.queries[query_id]
        rows += [Row(query_id, query, doc_id, collection.corpus[doc_id]) for doc_id in ranking]
    ranked = {row.query_id for row in rows}
    qrels = {q: judged for q, judged in collection.qrels.items() if q in ranked}
    if len(qrels) < len(collection.qrels):
        log.warning(
            "%s: %d of %d judged queries are not ranked",
            run_name or source.name,
            len(collection.qrels) - len(qrels),
            len(collection.qrels),
        )
    return Candidates(collection.name, tuple(rows), qrels)


def _from_tables(
    data: str, sources: Sequence[Source], split: str, asked: Columns, without_query: bool
) -> Candidates:
    found = _Rows()
    collection = next((source.name for source in sources if source.has_first_stage), None)
    if collection is not None:
        raise BadInput(f"{collection}: a collection beside other data; name one data set")
    for source in sources:
        table = open_table(source, split)
        if not table.names:
            continue  # an empty file
        if asked.first and asked.first not in table.names and "/" in asked.first:
            raise BadInput(
                f"{source.name}: no column {asked.first!r}, only {', '.join(table.names)}, nor a "
                "model folder of that name"
            )
        columns = columns_of(asked, table.names, source.name, without_query)
        if table.schema is not None:
            check_types(table.schema, columns, source.name)
        graded = [GRADE] if GRADE in table.names else []
        for chunk in table.chunks([*columns.names(), *graded]):
            pairs = pairs_of(chunk.values, columns, chunk.where, needs_texts=True)
            grades = chunk.values[GRADE] if graded else [None] * chunk.rows
            grades = grades.to_pylist() if isinstance(grades, pa.Array) else grades
            for number, (pair, grade) in enumerate(zip(pairs.to_pylist(), grades, strict=True)):
                found.add(pair, grade, chunk.where(number))
    if asked.first:  # the best first, as a depth cuts them
        for own in found.by_query.values():
            own.sort(key=lambda row: -(row.first_score or 0.0))
    rows = tuple(row for rows in found.by_query.values() for row in rows)
    name = data if data.startswith("hf:") else PurePosixPath(shown(data)).name
    return Candidates(name, rows, found.judgements.qrels)


class _Rows:
    """Rows as they are read, each query's together."""

    def __init__(self) -> None:
        self.by_query: dict[str, list[Row]] = {}
        self.judgements = Judgements()
        self._queries = Texts("query")
        self._documents = Texts("document")
        self._places: dict[tuple[str, str], str] = {}
        self._count = 0

    def add(self, pair: dict[str, Any], grade: Any, where: str) -> None:
        """Add a row. Raises BadInput where it contradicts one before, or stands twice."""
        self._count += 1
        query = pair.get("query", "")
        query_id = pair.get("query_id", query)
        doc_id = pair.get("doc_id", f"row {self._count}")
        row = Row(query_id, query, doc_id, pair["text"], pair.get("first"))
        self.judgements.add(query_id, doc_id, grade, where)
        first = self._places.setdefault((query_id, doc_id), where)
        if first != where:
            raise BadInput(
                f"{where}: document {doc_id!r} stands twice among the candidates of "
                f"{query_id!r}, first in {first}; keep one"
            )
        self._queries.add(query_id, query, where)
        self._documents.add(doc_id, row.text, where)
        self.by_query.setdefault(query_id, []).append(row)


def _warn_of_strangers(found: Candidates) -> None:
    """Say so where no judged document is among the candidates: their ids are hardly of one kind."""
    judged = (row.doc_id in found.qrels.get(row.query_id, ()) for row in found.rows)
    if found.qrels and not any(judged):
        log.warning(
            "%s: no judged document is among the candidates; are the ids those of the qrels?",
            found.name,
        )
