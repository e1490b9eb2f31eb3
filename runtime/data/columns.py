"""Which column of a table holds what, and one Arrow table of what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from xopt.runtime.data.fields import Values, Where, documents, first_scores, ids, queries
from xopt.runtime.errors import BadInput

__all__ = ["PREPARED", "Columns", "check_types", "columns_of", "pairs_of"]

PREPARED = "xopt:"  # before the columns that xopt writes beside a user's own


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns.

    - `query`, `text`, `title`: the columns of texts.
    - `query_id`, `doc_id`: the columns of ids. Without query ids the query's text is its id.
    - `first`: the column of the first stage's scores.

    An empty name, or None, stands for the usual column if it is there.
    """

    query: str = ""
    text: str | None = None
    title: str | None = None
    query_id: str | None = None
    doc_id: str | None = None
    first: str | None = None

    def names(self) -> list[str]:
        """Return all of them, each once."""
        named = (self.query_id, self.query, self.doc_id, self.title, self.text, self.first)
        return list(dict.fromkeys(name for name in named if name))


def columns_of(
    asked: Columns, there: Sequence[str], where: str, without_query: bool = False
) -> Columns:
    """Choose the columns that `asked` names, or the usual ones that are there.

    A document's text stands below its title where there is one, unless its column was named.
    `without_query` allows that there is no column of queries. Raises BadInput where a column that
    was named or is needed is not there.
    """
    mine = next((name for name in there if name.startswith(PREPARED)), None)
    if mine is not None:
        raise BadInput(
            f"{where}: column {mine!r}: names that start with {PREPARED!r} are xopt's own; "
            "rename it"
        )
    for name in asked.names():
        if name not in there:
            raise BadInput(f"{where}: no column {name!r}, only {', '.join(there)}")

    def usual(named: str | None, name: str) -> str | None:
        return named or (name if name in there else None)

    query = usual(asked.query, "query") or ""
    text = usual(asked.text, "text")
    title = None if asked.text else usual(None, "title")
    lacking = "" if query or without_query else "query"
    if text is None and title is None:
        lacking = lacking or "text"
    if lacking:
        raise BadInput(
            f"{where}: no column {lacking!r}, only {', '.join(there)}; name the one to take with "
            f"`{lacking}=`"
        )
    query_id = usual(asked.query_id, "query_id") if query else None
    return Columns(query, text, title, query_id, usual(asked.doc_id, "doc_id"), asked.first)


def check_types(schema: pa.Schema, columns: Columns, where: str) -> None:
    """Raises BadInput where a column of a Parquet file is not of a type that it can be read as."""
    names = list(schema.names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"{where}: has column {twice!r} twice")
    for name in columns.names():
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        fits = kind in (pa.string(), pa.large_string(), pa.string_view(), pa.null())
        if name in (columns.query_id, columns.doc_id, columns.title, columns.first):
            fits = fits or pa.types.is_integer(kind)
        if name == columns.first:
            fits = fits or pa.types.is_floating(kind)
        if not fits:
            what = "ids" if name in (columns.query_id, columns.doc_id) else "strings"
            raise BadInput(
                f"{where}: column {name!r} is of {kind}, not of {what}; name another, or cast it "
                "first"
            )


def pairs_of(
    values: Mapping[str, Values], columns: Columns, where: Where, needs_texts: bool = False
) -> pa.Table:
    """Make one Arrow table of rows: query_id, query, doc_id, text and first, one row each.

    A column that the rows do not have is left out. The texts of queries and documents are null
    where they are missing or blank, unless they are needed. Raises BadInput for the first value of
    no use.
    """
    made: dict[str, pa.Array] = {}
    if columns.query:
        made["query"] = queries(values[columns.query], columns.query, where, needs_texts)
        made["query_id"] = made["query"]
    if columns.query_id is not None:
        # A prepared file has no id for a query that is null and had none of its own.
        may_be_null = columns.query_id.startswith(PREPARED)
        made["query_id"] = ids(values[columns.query_id], columns.query_id, where, may_be_null)
    if columns.doc_id is not None:
        made["doc_id"] = ids(values[columns.doc_id], columns.doc_id, where)
    if columns.text is not None or columns.title is not None:
        titles = values[columns.title] if columns.title is not None else None
        texts = values[columns.text] if columns.text is not None else None
        made["text"] = documents(titles, texts, where, needs_texts)
    if columns.first is not None:
        made["first"] = first_scores(values[columns.first], columns.first, where)
    return pa.table(made)
