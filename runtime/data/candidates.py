"""Candidates: for each query, the documents to rank."""

from __future__ import annotations

import csv
import hashlib
import sysconfig
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from xopt.runtime.data.collection import Collection, read_beir, read_irds
from xopt.runtime.data.docstrings import Docstring, read_docstrings
from xopt.runtime.data.rows import FILES, Values, read_hf, read_rows
from xopt.runtime.data.trec import Qrels, read_run
from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import Pair

__all__ = ["Candidates", "Row", "demo_candidates", "read_candidates"]

DEMO_QUERIES, DEMO_DEPTH = 64, 25
COLLECTION_DEPTH = 100
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


@dataclass(frozen=True)
class Candidates:
    """Pairs to score, a query's together and in first-stage order, with qrels where there are any."""

    name: str
    rows: tuple[Row, ...]
    qrels: Qrels = field(default_factory=dict, hash=False)

    @property
    def pairs(self) -> list[Pair]:
        """(query, document) texts, one a row."""
        return [(row.query, row.text) for row in self.rows]

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

    def _only(self, rows: tuple[Row, ...]) -> Candidates:
        kept = {row.query_id for row in rows}
        return Candidates(self.name, rows, {q: judged for q, judged in self.qrels.items() if q in kept})


def read_candidates(
    data: str = "demo",
    *,
    run: str | None = None,
    split: str = "test",
    depth: int | None = None,
    queries: int | None = None,
) -> Candidates:
    """Read candidates from `data`.

    `demo`, see `demo_candidates`. A BEIR folder or `irds:ID`, a dataset of ir_datasets: the best `depth`
    (100) documents of each query by `run`, a TREC run file, or by BM25 for each query that the qrels
    of `split` judge. A .jsonl, .csv, .tsv or .parquet file or `hf:ID[:CONFIG]`, a Hugging Face dataset
    with a split: a pair a row in the columns query and text and, where there are any, query_id, doc_id and
    relevance, cut to `depth` a query where it is given. `queries` draws so many queries, always the same.
    Raises BadInput where the data is missing, empty or has a bad row.
    """
    path = Path(data)
    try:
        if path.is_dir() or data.startswith("irds:"):
            found = _first_stage(_collection(data, run, split), depth or COLLECTION_DEPTH, run)
        elif run is not None:
            raise BadInput(f"{data}: --run names documents of a BEIR folder or an irds: dataset; this is neither")
        elif data == "demo" and not path.exists():
            found = demo_candidates()
        elif data.startswith("hf:"):
            found = _from_rows(data, read_hf(data.removeprefix("hf:"), split))
        elif path.exists():
            found = _from_rows(path.name, read_rows(path))
        else:
            raise BadInput(
                f"{data}: no such file or folder; give `demo`, a BEIR folder, irds:ID, hf:ID, "
                f"or a {', '.join(FILES)} file"
            )
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise BadInput(f"{data}: cannot be read ({error}); files are text in UTF-8, or gzipped") from error
    if not found.rows:
        raise BadInput(f"{data}: no candidates in it; each row needs {', '.join(TEXTS)}")
    return found.cut(depth).draw(queries)


def demo_candidates(queries: int = DEMO_QUERIES, depth: int = DEMO_DEPTH) -> Candidates:
    """Docstrings of the running Python's standard library: summary line as query, body as document.

    A query's candidates are the `depth` nearest bodies by BM25, its own, the relevant one, among
    them: where BM25 leaves it out, it takes the last place. Deterministic for a Python version.
    """
    from xopt.runtime.data.bm25 import bm25_ranking

    docs = _standard_library()
    if len(docs) < depth:
        raise BadInput("demo: this Python has no readable source of its standard library; give --data a file")
    bodies = [doc.body for doc in docs]
    mixed = sorted(range(len(docs)), key=lambda i: hashlib.sha256(docs[i].summary.encode()).digest())
    chosen = mixed[:queries]
    rows = []
    for own, ranking in zip(chosen, bm25_ranking(bodies, [docs[i].summary for i in chosen], depth), strict=True):
        ranked = ranking if own in ranking else [*ranking[:-1], own]
        rows += [Row(docs[own].where, docs[own].summary, docs[i].where, bodies[i]) for i in ranked]
    return Candidates("demo", tuple(rows), {docs[i].where: {docs[i].where: 1} for i in chosen})


@cache
def _standard_library() -> tuple[Docstring, ...]:
    return tuple(read_docstrings(Path(sysconfig.get_paths()["stdlib"]), NOT_EVERYWHERE))


def _collection(data: str, run: str | None, split: str) -> Collection:
    given = read_run(Path(run)) if run is not None else None
    if data.startswith("irds:"):
        return read_irds(data.removeprefix("irds:"), given)
    return replace(read_beir(Path(data), split), run=given)


def _first_stage(collection: Collection, depth: int, run: str | None) -> Candidates:
    """The first stage's best documents of each query: by the run, or by BM25 where there is none."""
    if collection.run is None:
        rankings = _bm25(collection, depth)
    else:
        rankings = {
            query_id: sorted(scores, key=lambda doc_id: -scores[doc_id])[:depth]
            for query_id, scores in collection.run.items()
        }
    rows = []
    for query_id, ranking in rankings.items():
        for doc_id in ranking:
            if query_id not in collection.queries or doc_id not in collection.corpus:
                kind, missing = ("query", query_id) if query_id not in collection.queries else ("document", doc_id)
                raise BadInput(f"{run or collection.name}: {kind} {missing!r} is not in {collection.name}")
            rows.append(Row(query_id, collection.queries[query_id], doc_id, collection.corpus[doc_id]))
    return Candidates(collection.name, tuple(rows), {q: j for q, j in collection.qrels.items() if q in rankings})


def _bm25(collection: Collection, depth: int) -> dict[str, list[str]]:
    from xopt.runtime.data.bm25 import bm25_ranking

    judged, doc_ids = list(collection.qrels), list(collection.corpus)
    if not judged or not doc_ids:
        raise BadInput(f"{collection.name}: no judged queries to rank documents for; give a --run, or another --split")
    unknown = next((q for q in judged if q not in collection.queries), None)
    if unknown is not None:
        raise BadInput(f"{collection.name}: the qrels judge query {unknown!r}, which the queries lack")
    texts = [collection.queries[query_id] for query_id in judged]
    ranked = bm25_ranking(list(collection.corpus.values()), texts, depth)
    return {q: [doc_ids[i] for i in ranking] for q, ranking in zip(judged, ranked, strict=True)}


def _from_rows(name: str, rows: Iterable[Values]) -> Candidates:
    by_query: dict[str, list[Row]] = {}
    qrels: Qrels = {}
    seen: set[tuple[str, str]] = set()
    for number, (where, values) in enumerate(rows, start=1):
        query, text = (_text(values, name, where) for name in TEXTS)
        row = Row(_id(values, "query_id", query, where), query, _id(values, "doc_id", f"row {number}", where), text)
        if (row.query_id, row.doc_id) in seen:
            raise BadInput(f"{where}: document {row.doc_id!r} stands twice among the candidates of {row.query_id!r}")
        seen.add((row.query_id, row.doc_id))
        by_query.setdefault(row.query_id, []).append(row)
        relevance = values.get("relevance")
        if relevance not in (None, ""):
            qrels.setdefault(row.query_id, {})[row.doc_id] = _grade(relevance, where)
    return Candidates(name, tuple(row for rows in by_query.values() for row in rows), qrels)


def _text(values: dict[str, Any], name: str, where: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or (name == "query" and not value.strip()):
        raise BadInput(f"{where}: {name} is {value!r}; each row needs {' and '.join(TEXTS)}")
    return value


def _id(values: dict[str, Any], name: str, default: str, where: str) -> str:
    """The id in a column, or `default` where the data has no such column."""
    if name not in values:
        return default
    value = values[name]
    value = str(value) if isinstance(value, int) else value
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: {name} is {value!r}, not an id; leave the whole column out where you have none")
    return value


def _grade(value: Any, where: str) -> int:
    try:
        if float(value) == int(float(value)):
            return int(float(value))
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadInput(f"{where}: relevance is {value!r}, not a whole number")
