"""TREC's formats: runs (query, Q0, document, rank, score, tag) and qrels, with four columns or BEIR's three."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from xopt.runtime.errors import BadInput

__all__ = ["Qrels", "Run", "read_qrels", "read_run"]

Qrels = dict[str, dict[str, int]]  # grades by query id and document id
Run = dict[str, dict[str, float]]  # scores by query id and document id, in the file's order


def read_run(path: Path) -> Run:
    """Read a run. Raises BadInput where a line is not a run's or ranks a document twice, naming file and line."""
    run: Run = {}
    for where, fields in _lines(path):
        try:
            query_id, _, doc_id, _, score, *_ = fields
            value = float(score)
        except ValueError:
            raise BadInput(f"{where}: expected query, Q0, document, rank, score and tag, got {fields!r}") from None
        if not math.isfinite(value):
            raise BadInput(f"{where}: the score of document {doc_id!r} is {score}, not a finite number")
        if doc_id in run.setdefault(query_id, {}):
            raise BadInput(f"{where}: document {doc_id!r} is ranked twice for query {query_id!r}")
        run[query_id][doc_id] = value
    if not run:
        raise BadInput(f"{path}: an empty run; a line holds query, Q0, document, rank, score and tag")
    return run


def read_qrels(path: Path) -> Qrels:
    """Read qrels: TREC's `query 0 document grade`, or BEIR's `query-id corpus-id score` below a header."""
    qrels: Qrels = {}
    for number, (where, fields) in enumerate(_lines(path)):
        if number == 0 and fields[-1] == "score":
            continue
        try:
            query_id, *_, doc_id, grade = fields
            qrels.setdefault(query_id, {})[doc_id] = int(grade)
        except ValueError:
            raise BadInput(
                f"{where}: expected query, 0, document and a whole grade, or the same without the 0, got {fields!r}"
            ) from None
    return qrels


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if fields := line.split():
                    yield f"{path}:{number}", fields
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); give a text file in UTF-8") from error
