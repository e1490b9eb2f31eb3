"""Ranks candidates in a Daft DataFrame by a cascade, which scores few of them."""

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
from xopt.runtime.frames.columns import PREFIX, FrameColumns
from xopt.runtime.frames.instances import NullScores, open_timed
from xopt.runtime.scoring.encode import Pair

__all__ = ["QUERY_KEY", "ROW", "CascadeUDF", "check_cascade", "rank_by_cascade", "group_by_query"]

log = logging.getLogger(__name__)

RANKED = DataType.struct(
    {"score": DataType.list(DataType.float32()), "rank": DataType.list(DataType.int64())}
)
ROW = f"{PREFIX}row"  # the order of the candidates, which grouping loses
QUERY_KEY = f"{PREFIX}key"  # what they are grouped by
FIRST = f"{PREFIX}first"  # the first stage's score, of a column that may be replaced
RESULT = f"{PREFIX}result"
QUERIES_A_CALL = 64


class CascadeUDF:
    """Ranks batches of queries by a cascade; arguments as `RerankUDF`."""

    def __init__(
        self,
        opener: Callable[[], CascadeScorer],
        warm_up: Sequence[Pair] = (),
        own_gpu: bool = False,
        nulls: str = "null",
    ) -> None:
        self.scorer, self.load_s = open_timed(opener, own_gpu)
        self.nulls = nulls
        self.null_scores = NullScores()
        if warm_up:
            query = warm_up[0][0]
            texts = [text for _, text in warm_up]
            scores = [1.0] * len(texts) if self.scorer.cascade.order.with_score else None
            self.scorer.rank(query, texts, first_scores=scores)

    @daft.method.batch(return_dtype=RANKED)
    def rank(self, *columns: daft.Series) -> pa.Array:
        """Rank queries: a list of scores and one of ranks each; see `ranked`."""
        scores, ranks = self.ranked(*columns)
        score_lists = pa.array(scores, pa.list_(pa.float32()))
        rank_lists = pa.array(ranks, pa.list_(pa.int64()))
        return pa.StructArray.from_arrays([score_lists, rank_lists], ["score", "rank"])

    def ranked(
        self, *columns: daft.Series
    ) -> tuple[list[list[float | None]], list[list[int | None]]]:
        """Scores and ranks of each query's rows, in the order in which they came.

        The columns are the query's id, and lists of its rows' query, text, place and
        first-stage score. Ranks begin at 1, and a document not scored has the score None.
        """
        refuse = self.nulls == "raise"
        groups = []
        for values in zip(*(column.to_pylist() for column in columns), strict=True):
            query_id, queries, texts, _, _ = values
            if refuse and (query_id is None or None in queries or None in texts):
                raise BadInput(
                    f"a row of query {query_id!r:.80} has a null id or text; or give `nulls='null'`"
                )
            groups.append(_Group(*values))
        whole = [group for group in groups if group.query is not None]
        with_score = self.scorer.cascade.order.with_score
        lists = Lists(
            [str(group.query) for group in whole],
            [group.documents for group in whole],
            [group.first_scores for group in whole] if with_score else None,
        )
        found = self.scorer.rank_all(lists, finite=refuse)
        not_finite = sum(ranked.not_finite for ranked in found)
        nulls = sum(group.count - len(group.places) for group in groups)
        self.null_scores.add(not_finite, "have a score that is not finite")
        self.null_scores.add(nulls, "have a null text")
        in_turn = iter(found)
        scores = []
        ranks = []
        for group in groups:
            ranked = next(in_turn) if group.query is not None else None
            group_scores, group_ranks = group.filled(ranked)
            scores.append(group_scores)
            ranks.append(group_ranks)
        return scores, ranks


class _Group:
    """A query's rows; `places` are those to rank, in the first stage's order."""

    def __init__(
        self,
        query_id: Any,
        queries: list[Any],
        texts: list[Any],
        rows: list[int],
        first: list[Any],
    ) -> None:
        named = {query for query in queries if query is not None}
        if query_id is not None and len(named) > 1:
            raise BadInput(
                f"query id {query_id!r:.60} stands for several queries: "
                f"{sorted(named)[:2]!s:.160}; give each an id of its own"
            )
        self.count = len(texts)
        self.query = named.pop() if named and query_id is not None else None
        self.places: list[int] = []
        if self.query is not None:
            order = np.argsort(rows).tolist()
            self.places = [i for i in order if None not in (queries[i], texts[i])]
        self.documents = [texts[i] for i in self.places]
        scores = [first[i] for i in self.places]
        if None in scores:
            raise BadInput(
                f"query {self.query!r:.60}: a document without a score of the first stage; "
                "give each a number"
            )
        self.first_scores = np.array(scores, np.float32)

    def filled(self, found: Ranked | None) -> tuple[list[float | None], list[int | None]]:
        """Scores and ranks of all rows. Those without a text come last."""
        scores: list[float | None] = [None] * self.count
        ranks: list[int | None] = [None] * self.count
        if found is None:
            return scores, ranks
        ranking = [self.places[place] for place in found.ranking]
        ranking += sorted(set(range(self.count)) - set(self.places))
        for rank, row in enumerate(ranking, start=1):
            ranks[row] = rank
        for row, score in zip(self.places, found.scores.tolist(), strict=True):
            scores[row] = None if math.isnan(score) else score
        return scores, ranks


def check_cascade(
    candidates: daft.DataFrame,
    model: ModelFolder,
    columns: FrameColumns,
    top_k: int | None,
    **others: Any,
) -> None:
    """Raise BadInput where the folder has no cascade for these arguments."""
    cascade = Cascade.of(model)
    warning = cascade.beyond(top_k)
    if warning:
        log.warning("%s: %s", model.path, warning)
    for name, value in others.items():
        if value is not None and not (name == "variant" and value == cascade.variant):
            raise BadInput(
                f"{name}={value!r}: a cascade was certified as it is, "
                f"with {cascade.variant}; leave `{name}=` out"
            )
    first = columns.first
    if first is None and cascade.order.with_score:
        raise BadInput(
            f"{model.path}: its cascade goes by a column of scores, as "
            f"{cascade.certificate.column!r} was; name it with `first=`"
        )
    if first is not None and not cascade.order.with_score:
        raise BadInput(f"first={first!r}: its cascade goes without; leave `first=` out")
    if first is not None:
        dtype = columns.type_of("first", types_of(candidates))
        if not dtype.is_numeric():
            raise BadInput(f"column {first!r} is of {dtype}, not of numbers; cast it")


def types_of(candidates: daft.DataFrame) -> dict[str, DataType]:
    """Return the columns' types by name. Raises BadInput for what is no DataFrame."""
    if not isinstance(candidates, daft.DataFrame):
        raise BadInput(
            f"candidates are {type(candidates).__name__}, not a Daft DataFrame; "
            "make one, for example with `daft.from_pydict`"
        )
    return {field.name: field.dtype for field in candidates.schema()}


def group_by_query(candidates: daft.DataFrame, query_id: str) -> tuple[daft.DataFrame, list[str]]:
    """Make a row a query. Returns the frame, and the names of its columns of lists.

    `QUERY_KEY` is the query's id. Lists are all columns of the candidates. The id's own is among
    them, since it may also be the query's text. So is `ROW`, where each candidate stood.
    """
    numbered = candidates.with_column(ROW, monotonically_increasing_id())
    lists = numbered.column_names
    grouped = numbered.with_column(QUERY_KEY, col(query_id)).groupby(QUERY_KEY)
    queries = grouped.agg(*(col(name).list_agg() for name in lists))
    return queries.into_batches(QUERIES_A_CALL), lists


def rank_by_cascade(candidates: daft.DataFrame, udf: Any, columns: FrameColumns) -> daft.DataFrame:
    """Give each row a score and a rank, by a `CascadeUDF`."""
    made = (columns.score, columns.rank)
    kept = [name for name in candidates.column_names if name not in made]
    first = col(columns.first) if columns.first else lit(0.0)
    selected = candidates.select(*kept, first.alias(FIRST))
    for name in (columns.query, columns.text):
        # A column of nulls alone has no type.
        selected = selected.with_column(name, col(name).cast(DataType.string()))
    grouped, lists = group_by_query(selected, columns.query_id)
    inputs = [col(name) for name in (QUERY_KEY, columns.query, columns.text, ROW, FIRST)]
    ranked = grouped.with_column(RESULT, udf.rank(*inputs))
    ranked = ranked.with_column(columns.score, col(RESULT)["score"])
    ranked = ranked.with_column(columns.rank, col(RESULT)["rank"])
    return ranked.explode(*lists, *made).select(*kept, *made)
