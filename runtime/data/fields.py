"""How texts, ids, titles, scores and grades are read, whatever format they come in.

Values are Arrow arrays, or lists of what JSON, CSV and others hold. `where` tells where the value
of a number stands, for messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.encode import clean

__all__ = [
    "Judgements",
    "Qrels",
    "Texts",
    "Values",
    "Where",
    "documents",
    "first_scores",
    "grade_of",
    "ids",
    "number_of",
    "queries",
    "split_fields",
]

Values: TypeAlias = "Sequence[Any] | pa.Array"
Where: TypeAlias = Callable[[int], str]
Qrels: TypeAlias = "dict[str, dict[str, int]]"  # grades by query id and document id

TEXT = pa.large_string()
NO_GRADE = ("", "nan", "null", "none")  # as text; pandas, polars and SQL write a missing number so
LARGEST_GRADE = 1 << 31


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
        """Keep a grade, if there is one. Raises BadInput where the document has another already."""
        grade = grade_of(value, where)
        if grade is None:
            return
        if self.qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
            raise BadInput(
                f"{where}: document {doc_id!r:.60} of query {query_id!r:.60} has another grade "
                f"than in {self.places[query_id, doc_id]}; keep one"
            )
        self.places.setdefault((query_id, doc_id), where)


def ids(values: Values, name: str, where: Where, may_be_null: bool = False) -> pa.Array:
    """Read ids: texts, or whole numbers. Raises BadInput for anything else and for blanks."""
    what = "an id (a text or a whole number)"
    found = _texts(values, name, where, what, whole_numbers=True)
    wrong = _is_blank(found)
    if not may_be_null:
        wrong = pc.or_kleene(wrong, found.is_null())
    _refuse_first(wrong, values, name, where, what)
    return found


def queries(values: Values, name: str, where: Where, needed: bool) -> pa.Array:
    """Read the texts of queries, with a null for what is missing or blank.

    Raises BadInput for what is no text, and where one is `needed` for what is missing or blank.
    """
    what = "a query; each row needs the text of one" if needed else "a text"
    found = _texts(values, name, where, what)
    missing = pc.or_kleene(_is_blank(found), found.is_null())
    if needed:
        _refuse_first(missing, values, name, where, what)
    return pc.if_else(missing, pa.scalar(None, TEXT), found)


def documents(titles: Values | None, texts: Values | None, where: Where, needed: bool) -> pa.Array:
    """Read the texts of documents: the text below its title and a line break, or one of both.

    An empty text without a title is one. Raises BadInput for what is no text, and where one is
    `needed` for a document without a title and a text.
    """
    if texts is None:
        texts = [None] * len(titles or ())
    found = _texts(texts, "text", where, "a text; each document needs one")
    if titles is not None:
        title = _texts(titles, "title", where, "a text", whole_numbers=True)
        title = pc.if_else(_is_blank(title), pa.scalar(None, TEXT), title)
        # Without a text, or with an empty one, the title stands alone.
        below = pc.if_else(pc.equal(found, ""), pa.scalar(None, TEXT), found)
        both = pc.coalesce(pc.binary_join_element_wise(title, below, pa.scalar("\n", TEXT)), title)
        found = pc.coalesce(both, found)
    if needed:
        _refuse_first(found.is_null(), texts, "text", where, "a text; each document needs one")
    return found


def first_scores(values: Values, name: str, where: Where) -> pa.Array:
    """Read the first stage's scores. Raises BadInput for what is no finite number."""
    if isinstance(values, pa.Array) and _is_number(values.type):
        found = values.cast(pa.float64(), safe=False)
    else:
        found = pa.array([_number(value) for value in _listed(values)], pa.float64())
    unsound = pc.or_kleene(found.is_null(), pc.invert(pc.is_finite(found)))
    _refuse_first(unsound, values, name, where, "a score; each row needs a finite number")
    return found


def grade_of(value: Any, where: str) -> int | None:
    """Read a grade: None where the document is not judged (nothing, null, NaN); true is 1.

    Raises BadInput for a fraction and for what is no number.
    """
    if _is_missing(value) or (isinstance(value, str) and value.strip().lower() in NO_GRADE):
        return None
    number = float(value) if isinstance(value, bool) else _number(value)
    if number is None or number != number // 1 or abs(number) > LARGEST_GRADE:
        raise BadInput(
            f"{where}: relevance is {value!r:.60}, not a whole number; grades are 0, 1, 2, ..."
        )
    return int(number)


def number_of(text: str) -> float:
    """Read a number as files have it.

    Raises ValueError for anything else that Python takes: `1_000`, other digits.
    """
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return float(text)


def split_fields(line: str, counts: Sequence[int]) -> list[str] | None:
    """Split a line of TREC's formats: by tabs where it has any, since ids may hold blanks.

    None where the number of fields is none of `counts`.
    """
    if "\t" not in line:
        ways = [[field for field in line.split(" ") if field]]
    else:
        ways = [line.split("\t"), line.strip("\t").split("\t")]
    return next((fields for fields in ways if len(fields) in counts), None)


def _texts(
    values: Values, name: str, where: Where, what: str, whole_numbers: bool = False
) -> pa.Array:
    """Values as texts, with nulls for what is missing. Raises BadInput for other values."""
    if isinstance(values, pa.Array):
        return values.cast(TEXT)  # `check_types` has seen to its type
    try:
        return pa.array(values, TEXT)
    except (pa.ArrowException, UnicodeError):
        pass  # not texts alone, or one with half of a surrogate pair

    def text(number: int, value: Any) -> str | None:
        if isinstance(value, str):
            return clean(value)
        if whole_numbers and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if _is_missing(value):
            return None
        raise BadInput(f"{where(number)}: {name} is {value!r:.60}, not {what}")

    return pa.array([text(number, value) for number, value in enumerate(values)], TEXT)


def _refuse_first(wrong: pa.Array, values: Values, name: str, where: Where, what: str) -> None:
    """Raises BadInput for the first value that is wrong, if there is one."""
    number = pc.index(wrong, pa.scalar(True)).as_py()
    if number >= 0:
        value = values[number].as_py() if isinstance(values, pa.Array) else values[number]
        raise BadInput(f"{where(number)}: {name} is {value!r:.60}, not {what}")


def _is_blank(texts: pa.Array) -> pa.Array:
    return pc.equal(pc.utf8_trim_whitespace(texts), "")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _listed(values: Values) -> Sequence[Any]:
    listed: Sequence[Any] = values.to_pylist() if isinstance(values, pa.Array) else values
    return listed


def _number(value: Any) -> float | None:
    """A number, or None for what is none."""
    try:
        if isinstance(value, str):
            return number_of(value)
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
