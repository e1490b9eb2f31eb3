"""Candidates: for each query, the documents to rank."""

from __future__ import annotations

import hashlib
import logging
import sysconfig
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from xopt.runtime.data.collection import first_stage, read_beir, read_irds
from xopt.runtime.data.docstrings import Docstring, read_docstrings
from xopt.runtime.data.fields import (
    Judgements,
    Qrels,
    Texts,
    document_of,
    first_score_of,
    id_of,
    query_of,
)
from xopt.runtime.data.tables import FILES, Values, read_hf, read_rows, readable
from xopt.runtime.data.trec import read_run
from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import Pair

log = logging.getLogger(__name__)

__all__ = [
    "DEMO_QUERIES",
    "Candidates",
    "Row",
    "demo_candidates",
    "preparing",
    "query_hash",
    "read_candidates",
]

DEMO = "demo"
DEMO_QUERIES, DEMO_DEPTH = 512, 25
COLLECTION_DEPTH = 100
PREPARING = 64  # queries at most that calibrating, tuning and steering may see, and no verdict
SPLIT = "test"
# Parts that some distributions leave out, and what is no documentation:
NOT_EVERYWHERE = frozenset(
    {
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
    }
)
TEXTS = ("query", "text")  # the columns that each row needs


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
    """Pairs to score, a query's together and in first-stage order, with qrels where there are
    any.
    """

    name: str
    rows: tuple[Row, ...]
    qrels: Qrels = field(default_factory=dict, hash=False)

    @property
    def pairs(self) -> list[Pair]:
        """(query, document) texts, one a row."""
        return [(row.query, row.text) for row in self.rows]

    @property
    def first_scores(self) -> list[float] | None:
        """The first stage's scores, where each row has one."""
        scores = [row.first_score for row in self.rows if row.first_score is not None]
        return scores if scores and len(scores) == len(self.rows) else None

    def groups(self) -> dict[str, slice]:
        """The rows of each query, by query id."""
        groups: dict[str, slice] = {}
        for i, row in enumerate(self.rows):
            start = groups[row.query_id].start if row.query_id in groups else i
            groups[row.query_id] = slice(start, i + 1)
        return groups

    def head(self, pairs: int) -> Candidates:
        """The first `pairs` rows, with the qrels of their queries."""
        rows = self.rows[:pairs]
        return self._only(rows)

    def whole(self, pairs: int) -> Candidates:
        """The first queries, with all their candidates, that have `pairs` rows at most; at least
        one.
        """
        stops = [rows.stop for rows in self.groups().values()]
        return self._only(self.rows[: max(stop for stop in stops if stop <= max(pairs, stops[0]))])

    def cut(self, depth: int | None) -> Candidates:
        """The first `depth` candidates of each query, or all."""
        groups = self.groups().values()
        return self._only(tuple(row for rows in groups for row in self.rows[rows][:depth]))

    def draw(self, queries: int | None) -> Candidates:
        """So many queries, drawn at random and always the same, in the order given; or all."""
        groups = list(self.groups().values())
        if queries is None or queries >= len(groups):
            return self
        drawn = np.sort(np.random.default_rng(0).permutation(len(groups))[:queries])
        return self._only(tuple(row for i in drawn for row in self.rows[groups[i]]))

    def shuffled(self) -> Candidates:
        """The queries in a random order, always the same, each with its candidates as they were."""
        groups = list(self.groups().values())
        order = np.random.default_rng(1).permutation(len(groups))
        return self._only(tuple(row for i in order for row in self.rows[groups[i]]))

    def between(self, first: int, last: int | None) -> Candidates:
        """The queries from number `first` up to, without, `last`, or to the end."""
        rows = list(self.groups().values())[first:last]
        return self._only(self.rows[rows[0].start : rows[-1].stop] if rows else ())

    def without(self, hashes: Collection[str]) -> Candidates:
        """The queries whose `query_hash` is none of these."""
        return (
            self._only(tuple(row for row in self.rows if query_hash(row.query) not in hashes))
            if hashes
            else self
        )

    def split(self) -> tuple[Candidates, Candidates]:
        """A part to prepare with (calibrate, tune, steer) and the rest, to judge by: they share
        no query.

        A fifth of the queries, `PREPARING` at most, chosen by their texts: ids of one text stay
        together. A single query is judged by, and there is none to prepare with.
        """
        hashes = {q: query_hash(self.rows[rows.start].query) for q, rows in self.groups().items()}
        texts = sorted(set(hashes.values()))
        preparing_texts = texts[: min(PREPARING, max(1, len(texts) // 5)) if len(texts) > 1 else 0]
        chosen = {q for q, hash_ in hashes.items() if hash_ in preparing_texts}
        parts = [
            tuple(r for r in self.rows if (r.query_id in chosen) is side) for side in (True, False)
        ]
        return self._only(parts[0]), self._only(parts[1])

    def _only(self, rows: tuple[Row, ...]) -> Candidates:
        kept = {row.query_id for row in rows}
        return Candidates(
            self.name, rows, {q: judged for q, judged in self.qrels.items() if q in kept}
        )


def preparing(candidates: Candidates) -> Candidates:
    """The part of candidates to prepare with: the demo data's, with a warning, where one query
    leaves none.
    """
    part = candidates.split()[0]
    if part.rows:
        return part
    log.warning(
        "%s: its only query is left to judge by; the demo data calibrate and tune", candidates.name
    )
    return demo_candidates().split()[0]


def query_hash(query: str) -> str:
    """Twelve digits of a query's sha256, by which a manifest tells which queries calibrated a
    variant.
    """
    return hashlib.sha256(query.encode()).hexdigest()[:12]


def read_candidates(
    data: str = DEMO,
    *,
    run: str | None = None,
    split: str | None = None,
    depth: int | None = None,
    queries: int | None = None,
    first: str | None = None,
    documents: bool = False,
) -> Candidates:
    """Read candidates from `data`.

    `demo`: always the built-in data, see `demo_candidates`; a folder of that name is `./demo`. A
    BEIR folder or `irds:ID`, a dataset of ir_datasets: the best `depth` (100) documents of each
    query by `run`, a TREC run file, or by BM25 for each query that the qrels of `split` (test)
    judge. A .jsonl, .ndjson, .csv, .tsv or .parquet file or `hf:ID[:CONFIG]`, a Hugging Face
    dataset with a split: a pair a row in the columns query and text (or title, or both) and,
    where there are any, query_id, doc_id and relevance, cut to `depth` a query where it is given.
    Text files may be gzipped. `queries` draws so many queries, always the same. `first` names a
    column of a table with the first stage's scores, which rows keep. With `documents` a table
    needs no column query, and all its rows are of one that is empty. How each field is read:
    docs/data.md. Raises BadInput where the data is missing, empty or has a bad row; a warning
    counts what is left out.
    """
    path = Path(data)
    with readable(data):
        beir = (
            data != DEMO
            and path.is_dir()
            and (any(path.glob("corpus.jsonl*")) or not any(path.glob("*.parquet")))
        )
        if split and not beir and not data.startswith("hf:"):
            raise BadInput(
                f"{data}: has no splits to choose from; --split is for BEIR folders and hf: datasets"
            )
        if first and (beir or data == DEMO or data.startswith("irds:")):
            raise BadInput(
                f"{data}: has no column {first!r}; the first stage's scores stand in a table's column"
            )
        if beir or data.startswith("irds:"):
            found = _collection(data, run, split or SPLIT, depth or COLLECTION_DEPTH)
        elif run is not None:
            raise BadInput(
                f"{data}: --run names documents of a BEIR folder or an irds: dataset; this is neither"
            )
        elif data == DEMO:
            found = demo_candidates()
        elif data.startswith("hf:"):
            found = _from_rows(
                data, read_hf(data.removeprefix("hf:"), split or SPLIT), first, documents
            )
        elif path.exists():
            found = _from_rows(path.name, read_rows(path), first, documents)
        else:
            raise BadInput(
                f"{data}: no such file or folder; give `demo`, a BEIR folder, irds:ID, hf:ID, "
                f"or a {', '.join(FILES)} file"
            )
    if not found.rows:
        raise BadInput(
            f"{data}: no candidates in it; each row needs {' and '.join(TEXTS)}, of CSV and TSV below a header"
        )
    alone = sum(not row.query for row in found.rows) if documents else 0
    if alone and alone < len(found.rows):
        raise BadInput(
            f"{data}: {alone} of {len(found.rows)} rows have no query; give documents alone, or a query each"
        )
    if alone and (depth or queries):
        raise BadInput(
            f"{data}: has no queries; leave out {'--depth' if depth else '--queries'}, which counts for each"
        )
    _warn_of_strangers(found)
    return found.cut(depth).draw(queries)


def demo_candidates(queries: int = DEMO_QUERIES, depth: int = DEMO_DEPTH) -> Candidates:
    """Docstrings of the running Python's standard library: summary line as query, body as document.

    A query's candidates are the `depth` nearest bodies by BM25, its own, the relevant one, among
    them: where BM25 leaves it out, it takes the last place. Deterministic for a Python version.
    """
    from xopt.runtime.data.bm25 import bm25_ranking

    docs = _standard_library()
    if len(docs) < depth:
        raise BadInput(
            "demo: this Python has no readable source of its standard library; give --data a file"
        )
    bodies = [doc.body for doc in docs]
    mixed = sorted(
        range(len(docs)), key=lambda i: hashlib.sha256(docs[i].summary.encode()).digest()
    )
    chosen = mixed[:queries]
    rows = []
    for own, ranking in zip(
        chosen, bm25_ranking(bodies, [docs[i].summary for i in chosen], depth), strict=True
    ):
        ranked = ranking if own in ranking else [*ranking[:-1], own]
        rows += [Row(docs[own].where, docs[own].summary, docs[i].where, bodies[i]) for i in ranked]
    return Candidates("demo", tuple(rows), {docs[i].where: {docs[i].where: 1} for i in chosen})


@cache
def _standard_library() -> tuple[Docstring, ...]:
    return tuple(read_docstrings(Path(sysconfig.get_paths()["stdlib"]), NOT_EVERYWHERE))


def _collection(data: str, run: str | None, split: str, depth: int) -> Candidates:
    given = read_run(Path(run)) if run is not None else None
    if data.startswith("irds:"):
        collection = read_irds(data.removeprefix("irds:"), given)
    else:
        collection = read_beir(Path(data), split, given)
    corpus, queries = collection.corpus, collection.queries
    rows = [
        Row(q, queries[q], d, corpus[d])
        for q, ranking in first_stage(collection, depth, run)
        for d in ranking
    ]
    ranked = {row.query_id for row in rows}
    unranked = [q for q in collection.qrels if q not in ranked]
    if unranked:
        log.warning(
            "%s: %d of %d judged queries are not ranked",
            run or data,
            len(unranked),
            len(collection.qrels),
        )
    return Candidates(
        collection.name, tuple(rows), {q: j for q, j in collection.qrels.items() if q in ranked}
    )


def _from_rows(name: str, rows: Iterable[Values], first: str | None, no_query: bool) -> Candidates:
    queries, documents = Texts("query"), Texts("document")
    by_query: dict[str, list[Row]] = {}
    judgements = Judgements()
    seen: dict[tuple[str, str], str] = {}
    for number, (where, values) in enumerate(rows, start=1):
        lacking = next((column for column in TEXTS[no_query:] if column not in values), None)
        if lacking and not (lacking == "text" and "title" in values):
            raise BadInput(
                f"{where}: no {lacking}, only {', '.join(map(str, values))}; each row needs query and text"
            )
        query = query_of(values["query"], "query", where) if "query" in values else ""
        text = document_of(values.get("title"), values.get("text"), where)
        query_id, doc_id = (
            id_of(values[column], column, where) if column in values else default
            for column, default in (("query_id", query), ("doc_id", f"row {number}"))
        )
        judgements.add(query_id, doc_id, values.get("relevance"), where)
        if (query_id, doc_id) in seen:
            raise BadInput(
                f"{where}: document {doc_id!r} stands twice among the candidates of {query_id!r}, first in "
                f"{seen[query_id, doc_id]}"
            )
        seen[query_id, doc_id] = where
        queries.add(query_id, query, where)
        documents.add(doc_id, text, where)
        score = None
        if first is not None:
            if first not in values:
                nor = ", nor a model folder of that name" if "/" in first else ""
                raise BadInput(
                    f"{where}: no column {first!r}, only {', '.join(map(str, values))}{nor}"
                )
            score = first_score_of(values[first], first, where)
        by_query.setdefault(query_id, []).append(Row(query_id, query, doc_id, text, score))
    # the best first, as a depth cuts them
    for own in by_query.values() if first is not None else ():
        own.sort(key=lambda row: -(row.first_score or 0.0))
    return Candidates(
        name, tuple(row for rows in by_query.values() for row in rows), judgements.qrels
    )


def _warn_of_strangers(found: Candidates) -> None:
    """Say so where no judged document is among the candidates: their ids are hardly of one kind."""
    if found.qrels and not any(
        row.doc_id in found.qrels.get(row.query_id, ()) for row in found.rows
    ):
        log.warning(
            "%s: no judged document is among the candidates; are the ids those of the qrels?",
            found.name,
        )
