"""TREC's formats: runs (query, Q0, document, rank, score, tag) and qrels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from xopt.runtime.data.fields import Judgements, Qrels, number_of, split_fields
from xopt.runtime.data.places import Place, located, shown
from xopt.runtime.data.text import open_text, readable
from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import clean

__all__ = ["Qrels", "Run", "read_qrels", "read_run"]

# Scores by query id and document id, a query's best document first.
Run = dict[str, dict[str, float]]
HEADERS = ("score", "relevance", "rel", "grade", "label")  # of the last column
MIXED = re.compile(r" Q?0 ", re.IGNORECASE)
RUN = "query, Q0, document, rank, score and tag"
QRELS = "query, 0, document and a whole grade, or the same without the 0"


def read_run(name: str | Path) -> Run:
    """Read a run: documents by score; those of one score by rank, then in the order of their lines.

    Raises BadInput where a line is not a run's or ranks a document twice, naming file and line.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for where, fields in _lines(str(name), None, (5, 6), RUN):
        query_id, _, doc_id, rank_field, score_field = fields[:5]
        rank = _number(rank_field)
        score = _number(score_field)
        tag = _number(fields[5]) if len(fields) > 5 else None
        # An id with a blank moves rank and score to the right: then the rank is a word, or the
        # tag a fraction.
        has_moved = rank is None or not math.isfinite(rank) or (tag is not None and tag % 1)
        if has_moved or score is None or rank is None:
            raise _unexpected(where, RUN, " ".join(fields))
        if not math.isfinite(score):
            raise BadInput(
                f"{where}: the score of document {doc_id!r} is {score_field}, "
                "not a finite number; mend the line"
            )
        if doc_id in found.setdefault(query_id, {}):
            raise BadInput(
                f"{where}: document {doc_id!r} is ranked twice for query {query_id!r}; "
                "keep one line"
            )
        found[query_id][doc_id] = -score, rank
    if not found:
        raise BadInput(f"{name}: an empty run; a line holds {RUN}")
    return {query_id: _best_first(documents) for query_id, documents in found.items()}


def _best_first(documents: dict[str, tuple[float, float]]) -> dict[str, float]:
    ranked = sorted(documents.items(), key=lambda item: item[1])
    return {doc_id: -negative for doc_id, (negative, _) in ranked}


def read_qrels(name: str | Path, place: Place | None = None) -> Qrels:
    """Read qrels: TREC's `query 0 document grade`, or BEIR's `query-id corpus-id score`.

    A first line whose last field names a column is a header. Raises BadInput where a line is no
    judgement, or gives a document another grade, naming file and line.
    """
    judgements = Judgements()
    for number, (where, fields) in enumerate(_lines(str(name), place, (3, 4), QRELS)):
        if number == 0 and fields[-1].lower() in HEADERS:
            continue
        if not _is_judgement(fields):
            raise _unexpected(where, QRELS, " ".join(fields))
        judgements.add(fields[0], fields[-2], fields[-1], where)
    return judgements.qrels


def _is_judgement(fields: Sequence[str]) -> bool:
    """Whether no id was cut at a blank.

    The second of four fields is a number then; of three, none has a 0 of its own, as where blanks
    and tabs are mixed.
    """
    if len(fields) == 4:
        return fields[1].lower() == "q0" or _number(fields[1]) is not None
    return not MIXED.search(f"{fields[0]} ") and not MIXED.match(f" {fields[1]}")


def _unexpected(where: str, expected: str, line: str) -> BadInput:
    return BadInput(
        f"{where}: expected {expected}, got {line.strip()!r:.200}; where ids hold blanks, put "
        "tabs between fields"
    )


def _number(text: str) -> float | None:
    try:
        return number_of(text)
    except ValueError:
        return None


def _lines(
    name: str, place: Place | None, counts: Sequence[int], expected: str
) -> Iterator[tuple[str, list[str]]]:
    """The fields of each line, of a path or an address unless the place is given."""
    given = shown(name)
    with readable(given), open_text(place or located(name)) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{given}:{number}"
            fields = split_fields(line.rstrip("\r\n"), counts)
            if fields is None:
                raise _unexpected(where, expected, line)
            # The ids: the first field, and the one before the grade, or before rank, score and tag.
            ids = (fields[0], fields[-2 if len(fields) < 5 else 2])
            if not all(each.strip() for each in ids):
                raise _unexpected(where, expected, line)
            yield where, [clean(field) for field in fields]
