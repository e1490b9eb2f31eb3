"""The columns that `rerank` reads and makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xopt.runtime.errors import BadInput

__all__ = ["PREFIX", "FrameColumns"]

PREFIX = "_xopt_"  # of columns that are made and removed again


@dataclass(frozen=True)
class FrameColumns:
    """Names of columns; `first` is that of the first stage's scores, or None."""

    query: str
    text: str
    score: str
    query_id: str
    rank: str
    first: str | None

    def check(
        self,
        types: Mapping[str, Any],
        cascade: bool,
        top_k: int | None,
        overwrite: bool,
    ) -> None:
        """Raise BadInput where a frame with columns of these types cannot be reranked."""
        for name in types:
            if name.startswith(PREFIX):
                raise BadInput(
                    f"column {name!r}: names that start with {PREFIX!r} are xopt's own; rename it"
                )
        for argument in ("query", "text"):
            self._check_text(argument, types)
        self._check_made("score", types, overwrite)
        if cascade or top_k is not None:
            self._check_made("rank", types, overwrite)
            self._check_ranks(types)
        else:
            self._check_unused()
        if self.first is not None and not cascade:
            raise BadInput(
                f"`first={self.first!r}`: the first stage's scores serve a cascade; "
                "give `cascade=True` too"
            )

    def type_of(self, argument: str, types: Mapping[str, Any]) -> Any:
        """Return the type of a column. Raises BadInput where it is missing."""
        name = self._name(argument)
        if name not in types:
            raise BadInput(
                f"no column {name!r} among {', '.join(types)}; name it with `{argument}=`"
            )
        return types[name]

    def _name(self, argument: str) -> str:
        name = getattr(self, argument)
        # Daft takes "*" for all columns.
        if not isinstance(name, str) or name.strip() in ("", "*"):
            raise BadInput(f"`{argument}={name!r}`: give a text other than '*'")
        return name

    def _check_text(self, argument: str, types: Mapping[str, Any]) -> None:
        dtype = self.type_of(argument, types)
        if not dtype.is_string() and not dtype.is_null():
            name = self._name(argument)
            raise BadInput(f"column {name!r} is of {dtype}, not of strings; cast it first")

    def _check_made(self, argument: str, types: Mapping[str, Any], overwrite: bool) -> None:
        name = self._name(argument)
        if name in (self.query, self.text):
            raise BadInput(f"`{argument}={name!r}`: is the column of a text; name another")
        if name in types and not overwrite:
            raise BadInput(
                f"there is a column {name!r} already; name another with `{argument}=`, "
                "or replace it with `overwrite=True`"
            )

    def _check_ranks(self, types: Mapping[str, Any]) -> None:
        if len({self.score, self.rank, self.query_id}) < 3:
            raise BadInput(
                f"`score={self.score!r}`, `rank={self.rank!r}`, "
                f"`query_id={self.query_id!r}`: name three columns"
            )
        self.type_of("query_id", types)

    def _check_unused(self) -> None:
        for argument in ("rank", "query_id"):
            name = getattr(self, argument)
            if name != argument:
                raise BadInput(
                    f"`{argument}={name!r}`: is for ranks; give `cascade=True` or `top_k=`"
                )
