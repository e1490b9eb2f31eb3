"""TREC's formats: runs (query, Q0, document, rank, score, tag) and qrels, with four columns or
BEIR's three.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from xopt.runtime.data.fields import Judgements, Qrels, number_of, split_fields
from xopt.runtime.data.tables import open_text
from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import clean

__all__ = ["Qrels", "Run", "read_qrels", "read_run"]

# scores by query id and document id, a query's best document first
Run = dict[str, dict[str, float]]
HEADERS = ("score", "relevance", "rel", "grade", "label")  # of the last column
MIXED = re.compile(r" Q?0 ", re.IGNORECASE)
RUN = "query, Q0, document, rank, score and tag"
QRELS = "query, 0, document and a whole grade, or the same without the 0"


def read_run(path: Path) -> Run:
    """Read a run: documents by score; those of one score by rank, then in the order of their lines.

    Raises BadInput where a line is not a run's or ranks a document twice, naming file and line.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for where, fields in _lines(path, (5, 6), RUN):
        query_id, _, doc_id, rank, score = fields[:5]
        place, value = _number(rank), _number(score)
        tag = _number(fields[5]) if len(fields) > 5 else None
        # An id with a blank moves rank and score to the right: then the rank is a word, or the
        # tag a fraction.
        if (
            place is None
            or not math.isfinite(place)
            or value is None
            or (tag is not None and tag % 1)
        ):
            raise _unexpected(where, RUN, " ".join(fields))
        if not math.isfinite(value):
            raise BadInput(
                f"{where}: the score of document {doc_id!r} is {score}, not a finite number"
            )
        if doc_id in found.setdefault(query_id, {}):
            raise BadInput(f"{where}: document {doc_id!r} is ranked twice for query {query_id!r}")
        found[query_id][doc_id] = -value, place
    if not found:
        raise BadInput(f"{path}: an empty run; a line holds {RUN}")
    return {
        query_id: {
            doc_id: -negative
            for doc_id, (negative, _) in sorted(docs.items(), key=lambda item: item[1])
        }
        for query_id, docs in found.items()
    }


def read_qrels(path: Path) -> Qrels:
    """Read qrels: TREC's `query 0 document grade`, or BEIR's `query-id corpus-id score` below a
    header.

    A first line whose last field names a column is a header. Raises BadInput where a line is no
    judgement, or gives a document another grade, naming file and line.
    """
    judgements = Judgements()
    for number, (where, fields) in enumerate(_lines(path, (3, 4), QRELS)):
        if number == 0 and fields[-1].lower() in HEADERS:
            continue
        # The second of four fields is a number, or an id with a blank was cut there.
        # Of three, none has a 0 of its own: there blanks and tabs are mixed.
        mixed = len(fields) == 3 and (MIXED.search(fields[0] + " ") or MIXED.match(" " + fields[1]))
        if mixed or (len(fields) == 4 and fields[1].lower() != "q0" and _number(fields[1]) is None):
            raise _unexpected(where, QRELS, " ".join(fields))
        judgements.add(fields[0], fields[-2], fields[-1], where)
    return judgements.qrels


def _unexpected(where: str, expected: str, line: str) -> BadInput:
    return BadInput(
        f"{where}: expected {expected}, got {line.strip()!r:.200}; where ids hold blanks, put tabs between fields"
    )


def _number(text: str) -> float | None:
    try:
        return number_of(text)
    except ValueError:
        return None


def _lines(path: Path, counts: Sequence[int], expected: str) -> Iterator[tuple[str, list[str]]]:
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                fields = split_fields(line.rstrip("\r\n"), counts)
                # The ids: the first field, and the one before the grade or before rank, score and
                # tag.
                ids = (fields[0], fields[-2 if len(fields) < 5 else 2]) if fields else ("",)
                if fields is None or not all(name.strip() for name in ids):
                    raise _unexpected(f"{path}:{number}", expected, line)
                yield f"{path}:{number}", [clean(field) for field in fields]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise BadInput(
            f"{path}: cannot be read ({error}); give a text file in UTF-8, gzipped or not"
        ) from error
