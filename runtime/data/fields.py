"""How texts, ids, titles and grades are read, whatever format they come in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import clean

__all__ = [
    "Judgements",
    "Qrels",
    "Texts",
    "document_of",
    "document_or_null",
    "first_score_of",
    "grade_of",
    "id_of",
    "number_of",
    "query_of",
    "query_or_null",
    "split_fields",
    "unranked_query_of",
]

NO_GRADE = ("", "nan", "null", "none")  # as text; pandas, polars and SQL write a missing number so
LARGEST_GRADE = 1 << 31

Qrels = dict[str, dict[str, int]]  # grades by query id and document id


class Texts(dict[str, str]):
    """Texts of one kind (queries or documents) by id, and where each stands."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.places: dict[str, str] = {}

    def add(self, name: str, text: str, where: str) -> None:
        """Keep a text. Raises BadInput where the id has another one already, naming both places."""
        if self.setdefault(name, text) != text:
            raise BadInput(
                f"{where}: {self.kind} {name!r:.60} has another text than in {self.places[name]}; "
                "an id stands for one text"
            )
        self.places.setdefault(name, where)


class Judgements:
    """Qrels as they are read: one grade for a document of a query, and where each stands."""

    def __init__(self) -> None:
        self.qrels: Qrels = {}
        self.places: dict[tuple[str, str], str] = {}

    def add(self, query_id: str, doc_id: str, value: Any, where: str) -> None:
        """Keep a grade, if `value` is one. Raises BadInput where the document has another
        already.
        """
        grade = grade_of(value, where)
        if grade is None:
            return
        if self.qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
            raise BadInput(
                f"{where}: document {doc_id!r:.60} of query {query_id!r:.60} has another grade than in "
                f"{self.places[query_id, doc_id]}"
            )
        self.places.setdefault((query_id, doc_id), where)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def id_of(value: Any, name: str, where: str) -> str:
    """A text or a whole number as an id. Raises BadInput for anything else and for blanks."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where}: {name} is {value!r:.60}, not an id (a text or a whole number)")
    return clean(value)


def unranked_query_of(value: Any) -> str:
    """A query's text in a collection, where it counts only if documents are ranked for it: blank
    where it is none.
    """
    return clean(value) if isinstance(value, str) else ""


def query_of(value: Any, name: str, where: str) -> str:
    """A query's text. Raises BadInput where it is none or blank."""
    if not isinstance(value, str) or not value.strip():
        raise BadInput(
            f"{where}: {name} is {value!r:.60}, not a query; each row needs the text of one"
        )
    return clean(value)


def document_of(title: Any, text: Any, where: str) -> str:
    """A document's text, below its title and a line break where it has one, or a title alone.

    An empty text without a title is one. Raises BadInput where there is neither, or something
    else than text.
    """
    if isinstance(title, int) and not isinstance(title, bool):
        title = str(title)
    if not _missing(title) and not isinstance(title, str):
        raise BadInput(f"{where}: title is {title!r:.60}, not a text")
    if isinstance(title, str) and title.strip() and (_missing(text) or text == ""):
        return clean(title)
    if not isinstance(text, str):
        raise BadInput(f"{where}: text is {text!r:.60}, not a text; each document needs one")
    return clean(f"{title}\n{text}" if isinstance(title, str) and title.strip() else text)


def query_or_null(value: Any, name: str, where: str) -> str | None:
    """A query's text, or None where there is none, or a blank one. Raises BadInput for what is no
    text.
    """
    if _missing(value) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise BadInput(f"{where}: {name} is {value!r:.60}, not a text")
    return clean(value)


def document_or_null(title: Any, text: Any, where: str) -> str | None:
    """As `document_of`, or None where there is neither a title nor a text."""
    if _missing(text) and (_missing(title) or (isinstance(title, str) and not title.strip())):
        return None
    return document_of(title, text, where)


def grade_of(value: Any, where: str) -> int | None:
    """A grade, or None where the document is not judged: nothing, null, NaN. 1.0 and true are 1.

    Raises BadInput for a fraction and for what is no number.
    """
    if _missing(value) or (isinstance(value, str) and value.strip().lower() in NO_GRADE):
        return None
    try:
        number = number_of(value) if isinstance(value, str) else float(value)
        if number == int(number) and abs(number) <= LARGEST_GRADE:
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadInput(
        f"{where}: relevance is {value!r:.60}, not a whole number; grades are 0, 1, 2, ..."
    )


def first_score_of(value: Any, name: str, where: str) -> float:
    """A score of the first stage. Raises BadInput for what is no finite number."""
    try:
        number = number_of(value) if isinstance(value, str) else float(value)
        if math.isfinite(number) and not isinstance(value, bool):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadInput(f"{where}: {name} is {value!r:.60}, not a score; each row needs a finite number")


def number_of(text: str) -> float:
    """A number as files have it. Raises ValueError for anything else that Python takes: `1_000`,
    other digits.
    """
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return float(text)


def split_fields(line: str, counts: Sequence[int]) -> list[str] | None:
    """The fields of a line of TREC's formats: by tabs where it has any, since ids may hold
    blanks, else by blanks.

    None where their number is none of `counts`.
    """
    ways = (
        [[field for field in line.split(" ") if field]] if "\t" not in line else [line.split("\t")]
    )
    if "\t" in line:
        ways.append(line.strip("\t").split("\t"))
    return next((fields for fields in ways if len(fields) in counts), None)
