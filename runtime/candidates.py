"""Candidates: for each query, the documents to rank."""

from __future__ import annotations

import csv
import hashlib
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xopt.runtime.beir import read_beir, read_jsonl
from xopt.runtime.docstrings import read_docstrings
from xopt.runtime.encode import Pair
from xopt.runtime.errors import BadInput

__all__ = ["Candidates", "Row", "demo_candidates", "read_candidates"]

DEMO_QUERIES, DEMO_DEPTH = 64, 25
BEIR_DEPTH = 100
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
FIELDS = ("query_id", "query", "doc_id", "text")

Qrels = dict[str, dict[str, int]]


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
        kept = {row.query_id for row in rows}
        return Candidates(self.name, rows, {q: judged for q, judged in self.qrels.items() if q in kept})


def read_candidates(data: str, queries: int | None = None) -> Candidates:
    """Read candidates: `demo`, a BEIR folder (test qrels, BM25's first 100), or a JSONL, CSV or Parquet file.

    A file has columns query_id, query, doc_id, text and, optionally, relevance. `queries` keeps the
    first so many queries. Raises BadInput where the data is missing, empty or has a bad row.
    """
    path = Path(data)
    if data == "demo" and not path.exists():
        found = demo_candidates()
    elif path.exists():
        try:
            found = _beir_candidates(path, queries) if path.is_dir() else _read_file(path)
        except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
            raise BadInput(f"{data}: cannot be read ({error}); files are text in UTF-8, or gzipped") from error
    else:
        raise BadInput(
            f"{data}: no such file or folder; give `demo`, a BEIR folder, or a .jsonl, .csv or .parquet file"
        )
    if not found.rows:
        raise BadInput(f"{data}: no candidates in it; each row needs {', '.join(FIELDS)}")
    groups = list(found.groups().values())
    return found.head(groups[min(queries or len(groups), len(groups)) - 1].stop)


def demo_candidates(queries: int = DEMO_QUERIES, depth: int = DEMO_DEPTH) -> Candidates:
    """Docstrings of the running Python's standard library: summary line as query, body as document.

    A query's candidates are the `depth` nearest bodies by BM25, its own, the relevant one, among
    them: where BM25 leaves it out, it takes the last place. Deterministic for a Python version.
    """
    from xopt.runtime.bm25 import bm25_ranking

    docs = list(read_docstrings(Path(sysconfig.get_paths()["stdlib"]), NOT_EVERYWHERE))
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


def _beir_candidates(folder: Path, queries: int | None) -> Candidates:
    from xopt.runtime.bm25 import bm25_ranking

    beir = read_beir(folder)
    doc_ids, passages = list(beir.corpus), list(beir.corpus.values())
    judged = list(beir.qrels)[:queries]
    unknown = next((q for q in judged if q not in beir.queries), None)
    if unknown is not None:
        raise BadInput(f"{folder}: the qrels judge query {unknown!r}, which queries.jsonl lacks")
    rankings = bm25_ranking(passages, [beir.queries[q] for q in judged], BEIR_DEPTH)
    rows = (
        Row(query_id, beir.queries[query_id], doc_ids[i], passages[i])
        for query_id, ranking in zip(judged, rankings, strict=True)
        for i in ranking
    )
    return Candidates(folder.resolve().name, tuple(rows), {q: beir.qrels[q] for q in judged})


def _read_file(path: Path) -> Candidates:
    readers = {".jsonl": read_jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise BadInput(f"{path}: unknown kind {path.suffix!r}; give a .jsonl, .csv or .parquet file")
    by_query: dict[str, list[Row]] = {}
    qrels: Qrels = {}
    seen: set[tuple[str, str]] = set()
    for where, values in readers[path.suffix](path):
        row = Row(**{name: _text(values, name, where) for name in FIELDS})
        if (row.query_id, row.doc_id) in seen:
            raise BadInput(f"{where}: document {row.doc_id!r} stands twice among the candidates of {row.query_id!r}")
        seen.add((row.query_id, row.doc_id))
        by_query.setdefault(row.query_id, []).append(row)
        relevance = values.get("relevance")
        if relevance not in (None, ""):
            qrels.setdefault(row.query_id, {})[row.doc_id] = _grade(relevance, where)
    return Candidates(path.name, tuple(row for rows in by_query.values() for row in rows), qrels)


def _text(values: dict[str, Any], name: str, where: str) -> str:
    value = values.get(name)
    if name.endswith("_id") and isinstance(value, int):
        value = str(value)
    if not isinstance(value, str) or (not value.strip() and name != "text"):
        raise BadInput(f"{where}: {name} is {value!r}; each row needs a text in {', '.join(FIELDS)}")
    return value


def _grade(value: Any, where: str) -> int:
    try:
        if float(value) == int(float(value)):
            return int(float(value))
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadInput(f"{where}: relevance is {value!r}, not a whole number")


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(1 << 30)  # a document may be long
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        for values in reader:
            yield f"{path}:{reader.line_num}", values


def _parquet(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise BadInput(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    return ((f"{path}: row {i}", values) for i, values in enumerate(table.to_pylist()))
