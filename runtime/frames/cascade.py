"""Candidates in a Daft DataFrame are ranked by a cascade: a query's come together, and few of
them are scored.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import daft
import numpy as np
import pyarrow as pa
from daft import DataType, col, lit
from daft.functions import monotonically_increasing_id

from xopt.runtime.cascade.cascade import Cascade, CascadeScorer, Lists, Ranked
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.frames.instances import Unscored, opened
from xopt.runtime.scoring.encode import Pair

__all__ = ["KEY", "PREFIX", "ROW", "CascadeUDF", "by_cascade", "check_cascade", "together"]

RANKED = DataType.struct(
    {"score": DataType.list(DataType.float32()), "rank": DataType.list(DataType.int64())}
)
# The candidates' order, which grouping loses; what they are grouped by; the first stage's score;
# what is made of them.
PREFIX = "_xopt_"  # of columns that go as they came
ROW, KEY, FIRST, RESULT = "_xopt_row", "_xopt_key", "_xopt_first", "_xopt_result"
QUERIES_A_CALL = 64
log = logging.getLogger(__name__)


class CascadeUDF:
    """Opens one cascade an instance, and ranks batches of queries; `alone` on its GPU where there
    are several.
    """

    def __init__(
        self,
        opener: Callable[[], CascadeScorer],
        warm_up: Sequence[Pair] = (),
        alone: bool = False,
        nulls: str = "null",
    ) -> None:
        self.scorer, self.load_s = opened(opener, alone)
        self.nulls, self.unscored = nulls, Unscored()
        if warm_up:
            self.scorer.rank(
                warm_up[0][0], [text for _, text in warm_up], first_scores=self._ones(len(warm_up))
            )

    @daft.method.batch(return_dtype=RANKED)
    def rank(self, *columns: daft.Series) -> pa.Array:
        """For each query a list of scores, null for a document that was not scored, and of ranks
        from 1.

        The columns: the query's id; and lists of its rows' query, text, place and first-stage
        score.
        """
        scores, ranks = self.ranked(*columns)
        lists = [pa.array(scores, pa.list_(pa.float32())), pa.array(ranks, pa.list_(pa.int64()))]
        return pa.StructArray.from_arrays(lists, ["score", "rank"])

    def ranked(
        self, *columns: daft.Series
    ) -> tuple[list[list[float | None]], list[list[int | None]]]:
        """Scores and ranks of the candidates of each query, in the order in which they came."""
        with_score = self.scorer.cascade.order.with_score
        groups = []
        for name, queries, texts, rows, first in zip(
            *(column.to_pylist() for column in columns), strict=True
        ):
            if self.nulls == "raise" and (name is None or None in queries or None in texts):
                raise BadInput(
                    f"a row of query {name!r:.80} has a null id or text; or give nulls='null'"
                )
            groups.append(_Group(name, queries, texts, rows, first if with_score else None))
        whole = [group for group in groups if group.query is not None]
        scores = (
            [group.first_scores for group in whole if group.first_scores is not None]
            if with_score
            else None
        )
        lists = Lists([str(g.query) for g in whole], [g.documents for g in whole], scores)
        found = self.scorer.rank_all(lists, finite=self.nulls == "raise")
        self.unscored.add(
            "have a score that is not finite", sum(ranked.not_finite for ranked in found)
        )
        self.unscored.add(
            "have a null text", sum(group.count - len(group.places) for group in groups)
        )
        by_group = {id(group): each for group, each in zip(whole, found, strict=True)}
        made = [group.filled(by_group.get(id(group))) for group in groups]
        return [scores for scores, _ in made], [ranks for _, ranks in made]

    def _ones(self, count: int) -> list[float] | None:
        return [1.0] * count if self.scorer.cascade.order.with_score else None


class _Group:
    """A query's rows as they came, and which of them can be ranked, in the first stage's order."""

    def __init__(
        self,
        name: Any,
        queries: list[Any],
        texts: list[Any],
        rows: list[int],
        first: list[Any] | None,
    ) -> None:
        named = {query for query in queries if query is not None}
        if name is None:  # rows of no query, whichever it is
            named = set()
        if len(named) > 1:
            raise BadInput(
                f"query id {name!r:.60} stands for several queries: {sorted(named)[:2]!s:.160}"
            )
        self.count, self.query = len(texts), next(iter(named), None)
        there = [
            i
            for i in np.argsort(rows)
            if self.query is not None and None not in (texts[i], queries[i])
        ]
        if first is not None and any(first[i] is None for i in there):
            raise BadInput(
                f"query {self.query!r:.60}: a document without a score of the first stage"
            )
        self.places = there
        self.documents = [texts[i] for i in there]
        self.first_scores = (
            np.array([first[i] for i in there], np.float32) if first is not None else None
        )

    def filled(self, found: Ranked | None) -> tuple[list[float | None], list[int | None]]:
        """The score and the rank of each row: what has no text comes last, and without a query
        there are no ranks.
        """
        scores: list[float | None] = [None] * self.count
        ranks: list[int | None] = [None] * self.count
        if found is not None:
            turn = [self.places[place] for place in found.ranking]
            turn += sorted(set(range(self.count)) - set(turn))
            for rank, row in enumerate(turn, start=1):
                ranks[row] = rank
            for row, score in zip(self.places, found.scores.tolist(), strict=True):
                scores[row] = None if math.isnan(score) else score
        return scores, ranks


def check_cascade(
    candidates: daft.DataFrame,
    model: ModelFolder,
    query_id: str,
    first: str | None,
    top_k: int | None,
    **others: Any,
) -> None:
    """Raises BadInput where the folder has no cascade, it goes by other columns, or others are
    asked for.
    """
    kept = Cascade.of(model)
    if beyond := kept.beyond(top_k):
        log.warning("%s: %s", model.path, beyond)
    for name, value in others.items():
        if value is not None and not (name == "variant" and value == kept.variant):
            raise BadInput(
                f"{name}={value!r}: a cascade was certified as it is, with {kept.variant}; leave it out"
            )
    if kept.order.with_score != (first is not None):
        asked = f"by a column of scores, as {kept.certificate.column!r} was; name it with first="
        raise BadInput(
            f"{model.path}: its cascade goes {asked}"
            if first is None
            else f"first={first!r}: its cascade goes without"
        )
    types = {field.name: field.dtype for field in candidates.schema()}
    for name in (query_id, *([first] if first else [])):
        if name not in types:
            raise BadInput(
                f"no column {name!r} among {', '.join(types)}; name it with query_id=, first="
            )
    if first is not None and not types[first].is_numeric():
        raise BadInput(f"column {first!r} is of {types[first]}, not of numbers; cast it first")


def together(candidates: daft.DataFrame, query_id: str) -> tuple[daft.DataFrame, list[str]]:
    """A row a query, by `KEY`, its id; all columns hold lists, with `ROW`, where each candidate
    stood; and their names.

    The id's own column is one of them: it may be that of the query's text.
    """
    numbered = candidates.with_column(ROW, monotonically_increasing_id())
    lists = numbered.column_names
    grouped = numbered.with_column(KEY, col(query_id)).groupby(KEY)
    return grouped.agg(*(col(name).list_agg() for name in lists)).into_batches(
        QUERIES_A_CALL
    ), lists


def by_cascade(
    candidates: daft.DataFrame,
    ranked: Any,
    query_id: str,
    columns: tuple[str, str, str | None],
    made: tuple[str, str],
) -> daft.DataFrame:
    """The rows, each with a score and a rank. `columns` name query, text and, where there is one,
    the first score.
    """
    query, text, first = columns
    kept = [name for name in candidates.column_names if name not in made]
    # a column of nulls alone has no type
    texts = {name: col(name).cast(DataType.string()) for name in (query, text)}
    # of a column that may be replaced
    first_score = (col(first) if first else lit(0.0)).alias(FIRST)
    grouped, lists = together(candidates.select(*kept, first_score).with_columns(texts), query_id)
    scored = grouped.with_column(RESULT, ranked.rank(*map(col, (KEY, query, text, ROW, FIRST))))
    results = {
        name: col(RESULT)[field] for name, field in zip(made, ("score", "rank"), strict=True)
    }
    return scored.with_columns(results).explode(*lists, *made).select(*kept, *made)
