"""TREC's formats: runs (query, Q0, document, rank, score, tag) and qrels, with four columns or BEIR's three."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from xopt.runtime.data.fields import grade_of, split_fields
from xopt.runtime.data.tables import open_text
from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import clean

__all__ = ["Qrels", "Run", "read_qrels", "read_run"]

Qrels = dict[str, dict[str, int]]  # grades by query id and document id
Run = dict[str, dict[str, float]]  # scores by query id and document id, a query's best document first
HEADERS = ("score", "relevance")  # names of the last column, in a first line that is a header


def read_run(path: Path) -> Run:
    """Read a run: documents by score; those of one score by rank, then in the order of their lines.

    Raises BadInput where a line is not a run's or ranks a document twice, naming file and line.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for where, fields in _lines(path, (5, 6), "query, Q0, document, rank, score and tag"):
        query_id, _, doc_id, rank, score = fields[:5]
        value = _number(score)
        if value is None:
            raise BadInput(f"{where}: expected query, Q0, document, rank, score and tag, got {fields!r}")
        if not math.isfinite(value):
            raise BadInput(f"{where}: the score of document {doc_id!r} is {score}, not a finite number")
        if doc_id in found.setdefault(query_id, {}):
            raise BadInput(f"{where}: document {doc_id!r} is ranked twice for query {query_id!r}")
        place = _number(rank)
        found[query_id][doc_id] = value, 0.0 if place is None or math.isnan(place) else place
    if not found:
        raise BadInput(f"{path}: an empty run; a line holds query, Q0, document, rank, score and tag")
    return {
        query_id: {
            doc_id: score for doc_id, (score, _) in sorted(docs.items(), key=lambda item: (-item[1][0], item[1][1]))
        }
        for query_id, docs in found.items()
    }


def read_qrels(path: Path) -> Qrels:
    """Read qrels: TREC's `query 0 document grade`, or BEIR's `query-id corpus-id score` below a header.

    Raises BadInput where a line is not a judgement, or another one of the same document, naming file and line.
    """
    qrels: Qrels = {}
    places: dict[tuple[str, str], str] = {}
    first = True
    for where, fields in _lines(path, (3, 4), "query, 0, document and a whole grade, or the same without the 0"):
        header, first = first and fields[-1].lower() in HEADERS, False
        grade = None if header else grade_of(fields[-1], where)
        if grade is None:
            continue
        query_id, doc_id = fields[0], fields[-2]
        if qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
            raise BadInput(
                f"{where}: document {doc_id!r} of query {query_id!r} has another grade than in "
                f"{places[query_id, doc_id]}"
            )
        places.setdefault((query_id, doc_id), where)
    return qrels


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _lines(path: Path, counts: Sequence[int], expected: str) -> Iterator[tuple[str, list[str]]]:
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                fields = split_fields(line.rstrip("\r\n"), counts)
                # The ids: the first field, and the one before the grade or before rank, score and tag.
                if fields is None or not fields[0] or not fields[-2 if len(fields) < 5 else 2]:
                    raise BadInput(
                        f"{path}:{number}: expected {expected}, got {line.strip()!r:.200}; "
                        "where ids hold blanks, put tabs between fields"
                    )
                yield f"{path}:{number}", [clean(field) for field in fields]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(f"{path}: cannot be read ({error}); give a text file in UTF-8, gzipped or not") from error
