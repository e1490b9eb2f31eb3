"""Which column of an input holds what, and what a row of it says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from xopt.runtime.data.fields import document_or_null, first_score_of, id_of, query_or_null
from xopt.runtime.errors import BadInput

__all__ = ["PREPARED", "Columns", "Row", "check_types", "columns_of", "rows_of"]

PREPARED = "xopt:"  # before the columns that xopt writes beside a user's own


@dataclass(frozen=True)
class Columns:
    """The columns of a query's text, a document's text and title, the ids, and the first stage's
    scores.

    Without a column of query ids the query's text is its id. Of columns that are asked for, an
    empty name is the usual one.
    """

    query: str
    text: str | None
    title: str | None = None
    query_id: str | None = None
    doc_id: str | None = None
    first: str | None = None

    def names(self) -> list[str]:
        """All of them, each once."""
        named = (self.query_id, self.query, self.doc_id, self.title, self.text, self.first)
        return list(dict.fromkeys(name for name in named if name))


@dataclass(frozen=True)
class Row:
    """What is to be scored: a null where the input has none, but for the id of a query that has
    one of its own.
    """

    query_id: str | None
    query: str | None
    doc_id: str | None
    text: str | None
    first: float | None


def columns_of(asked: Columns, there: Sequence[str], where: str) -> Columns:
    """The columns that `asked` names, or the usual ones, as far as they are needed and there.

    A document's text stands below its title where there is one, unless its column was named.
    Raises BadInput where one that was named or is needed is not there.
    """
    mine = next((name for name in there if name.startswith(PREPARED)), None)
    if mine is not None:
        raise BadInput(
            f"{where}: column {mine!r}: names that start with {PREPARED!r} are xopt's own; rename it"
        )
    for name in asked.names():
        if name not in there:
            raise BadInput(f"{where}: no column {name!r}, only {', '.join(there)}")

    def usual(named: str | None, name: str) -> str | None:
        return named or (name if name in there else None)

    query, text = usual(asked.query or None, "query"), usual(asked.text, "text")
    title = None if asked.text else usual(None, "title")
    if query is None or (text is None and title is None):
        lacking, option = ("text", "--text") if query else ("query", "--query")
        raise BadInput(
            f"{where}: no column {lacking!r}, only {', '.join(there)}; name the one to take with {option}"
        )
    return Columns(
        query,
        text,
        title,
        usual(asked.query_id, "query_id"),
        usual(asked.doc_id, "doc_id"),
        asked.first,
    )


def check_types(schema: pa.Schema, columns: Columns, where: str) -> None:
    """Raises BadInput where a column of a Parquet file is not of a type that it can be read as."""
    names = list(schema.names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"{where}: has column {twice!r} twice")
    for name in columns.names():
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = (
            pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
        )
        fits = text or pa.types.is_null(kind)
        if name in (columns.query_id, columns.doc_id, columns.title):
            fits = fits or pa.types.is_integer(kind)
        if name == columns.first:
            fits = fits or pa.types.is_integer(kind) or pa.types.is_floating(kind)
        if not fits:
            what = "ids" if name in (columns.query_id, columns.doc_id) else "strings"
            raise BadInput(
                f"{where}: column {name!r} is of {kind}, not of {what}; name another, or cast it first"
            )


def rows_of(
    values: dict[str, Sequence[object]], columns: Columns, where: str, places: Iterable[int]
) -> Iterator[Row]:
    """The rows of columns by name, which stand at `places`. Raises BadInput, with the place, for
    a value of no use.
    """
    names = columns.names()
    for place, row in zip(places, zip(*(values[name] for name in names), strict=True), strict=True):
        yield row_of(dict(zip(names, row, strict=True)), columns, f"{where}: row {place}")


def row_of(values: dict[str, object], columns: Columns, where: str) -> Row:
    """What one row says."""
    query = query_or_null(values.get(columns.query), columns.query, where)
    query_id: str | None = query
    if columns.query_id is not None and not (
        # a null query without an id
        values.get(columns.query_id) is None and columns.query_id.startswith(PREPARED)
    ):
        query_id = id_of(values.get(columns.query_id), columns.query_id, where)
    return Row(
        query_id,
        query,
        id_of(values.get(columns.doc_id), columns.doc_id, where)
        if columns.doc_id is not None
        else None,
        document_or_null(values.get(columns.title or ""), values.get(columns.text or ""), where),
        first_score_of(values.get(columns.first), columns.first, where)
        if columns.first is not None
        else None,
    )
