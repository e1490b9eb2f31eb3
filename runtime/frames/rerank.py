"""Candidates in a Daft DataFrame get scores: a thin batch UDF around a scorer that knows nothing
of Daft.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

os.environ.setdefault("DO_NOT_TRACK", "1")  # read by daft as it is imported

import daft
import numpy as np
import pyarrow as pa
from daft import DataType, Window, col, lit
from daft.functions import monotonically_increasing_id, row_number
from numpy.typing import NDArray

from xopt.runtime.cascade.cascade import open_cascade
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.frames.cascade import PREFIX, ROW, CascadeUDF, by_cascade, check_cascade
from xopt.runtime.frames.instances import Unscored, instances, opened
from xopt.runtime.scoring.device import check_name
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.plan import ROWS_A_CALL
from xopt.runtime.scoring.scorer import Scorer, open_scorer

__all__ = ["Label", "RerankUDF", "rerank"]

VARIANT = "onnx-fp32"  # unless another is asked for
LEAST, MOST = "_xopt_least", "_xopt_most"

Label = int | tuple[int, int] | Literal["all"] | None


class RerankUDF:
    """Opens one scorer an instance and scores batches of rows; `alone` on its GPU where there are
    several.

    A row with a null text, and one whose score is not finite, has a null score. They are counted,
    and a warning tells of the first, the tenth, the hundredth and so on; with `nulls` "raise" the
    first one raises BadInput.
    """

    def __init__(
        self,
        opener: Callable[[], Scorer],
        warm_up: Sequence[Pair] = (),
        alone: bool = False,
        label: Label = None,
        nulls: str = "null",
    ) -> None:
        self.scorer, self.load_s = opened(opener, alone)
        self.label, self.nulls = label, nulls
        self.unscored = Unscored()
        if warm_up:
            self.scorer.logits(warm_up)

    def logits(self, query: daft.Series, text: daft.Series) -> NDArray[np.float32]:
        """Logits of a batch of rows, in their order: float32[n] or float32[n, labels]; NaN where
        there is a null.
        """
        rows = list(zip(query.to_pylist(), text.to_pylist(), strict=True))
        there = [i for i, pair in enumerate(rows) if None not in pair]
        found = self.scorer.logits([rows[i] for i in there])
        # Daft would spread a single result over the batch without a word
        if len(found) != len(there):
            raise RuntimeError(f"{len(found)} scores for {len(there)} rows")
        if len(there) < len(rows):
            if self.nulls == "raise":
                lost = next(pair for pair in rows if None in pair)
                raise BadInput(
                    f"a row has a null text: query {lost[0]!r:.80}, text {lost[1]!r:.80}; or give nulls='null'"
                )
            self.unscored.add("have a null text", len(rows) - len(there))
        logits = np.full((len(rows), *found.shape[1:]), np.nan, np.float32)
        logits[there] = found
        return logits

    @daft.method.batch(return_dtype=DataType.float32())
    def score(self, query: daft.Series, text: daft.Series) -> pa.Array:
        """One score a row: the logit, or what `label` makes of several."""
        logits = self.logits(query, text)
        if isinstance(self.label, tuple):
            logits = logits[:, self.label[0]] - logits[:, self.label[1]]
        elif isinstance(self.label, int):
            logits = logits[:, self.label]
        return pa.array(logits, mask=self._unsound(logits, query, text))

    @daft.method.batch(return_dtype=DataType.list(DataType.float32()))
    def lists(self, query: daft.Series, text: daft.Series) -> pa.Array:
        """A list of logits a row, for models of several labels."""
        logits = self.logits(query, text)
        unsound = self._unsound(logits, query, text)
        return pa.array(
            [None if bad else row for row, bad in zip(logits.tolist(), unsound, strict=True)]
        )

    def _unsound(
        self, logits: NDArray[np.float32], query: daft.Series, text: daft.Series
    ) -> NDArray[np.bool_]:
        unsound = ~np.isfinite(logits)
        if logits.ndim > 1:
            unsound = np.any(unsound, axis=1)
        nulls = np.array(query.is_null().to_pylist(), bool) | np.array(
            text.is_null().to_pylist(), bool
        )
        self.unscored.add("have a score that is not finite", int((unsound & ~nulls).sum()))
        return unsound


def rerank(
    candidates: daft.DataFrame,
    folder: str | os.PathLike[str],
    variant: str | None = None,
    *,
    query: str = "query",
    text: str = "text",
    score: str = "score",
    cascade: bool = False,
    query_id: str = "query_id",
    first: str | None = None,
    rank: str = "rank",
    top_k: int | None = None,
    overwrite: bool = False,
    label: Label = None,
    nulls: Literal["null", "raise"] = "null",
    plan: Plan | None = None,
    device: str = "cpu",
    workers: int | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
) -> daft.DataFrame:
    """Score a Daft DataFrame of candidates: the same rows with a float32 column `score`, lazily.

    By `variant`, onnx-fp32 unless given. With `cascade` the rows are ranked by the folder's
    cascade, see `xopt.runtime.open_cascade`: a query's candidates, rows of one `query_id`, are
    brought together, in the order in which they stand or, highest first, by the column `first`
    where the cascade was made with one. Those that are not scored have a null score; the column
    `rank`, from 1, has them after the others.

    With `top_k` only each query's best are left, with their `rank`: by score, then as they stood,
    nulls last. Rows of a null `query_id` are no query's. Daft brings a query's rows together for
    that; `rerank_files` need not.

    `query` and `text` name the columns with the two texts, which must be strings. A column named
    `score` that is there already is refused unless `overwrite`. A row with a null text has a null
    score, and so has one whose score is not finite; both are counted in warnings, but for
    `workers`, whose output Daft swallows: there count the nulls. With `nulls="raise"` a null text
    raises BadInput.

    A model of several labels ranks by what its export was told; else it needs `label`, which is
    taken before that: the number of the label whose logit is the score, two numbers for the
    difference of their logits, or "all" for a list of all logits a row, which nothing can sort
    by.

    Runs one instance, which uses the whole machine by its plan, over batches of 1024 rows (16,384
    on a GPU). `workers` is how many processes to run instead, actors on Ray, each with a GPU of
    its own where `device` is "cuda"; where several share a machine, `threads` is what each may
    use, and the CPUs that Ray reserves for it. `trust_remote_code` as in `open_scorer`. Daft
    keeps the row order on its native runner only: carry an id. Raises BadInput at once where the
    folder, the variant or a column is missing or a column is not of strings, and while running
    where the device is not there.
    """
    check_name(device)  # whether it is there, only a worker can tell
    model = ModelFolder.open(os.fspath(folder))
    made = {"score": score, "rank": rank} if cascade or top_k else {"score": score}
    _check_columns(candidates, (query, text), made, overwrite)
    if len(set(made.values())) < len(made) or (len(made) > 1 and query_id in made.values()):
        raise BadInput(f"score={score!r}, rank={rank!r}, query_id={query_id!r}: name three columns")
    if top_k is not None and query_id not in candidates.column_names:
        raise BadInput(
            f"no column {query_id!r} among {', '.join(candidates.column_names)}; name it with query_id="
        )
    if first is not None and not cascade:
        raise BadInput(
            f"first={first!r}: the first stage's scores serve a cascade; give cascade=True too"
        )
    for name, column in (("rank", rank), ("query_id", query_id)):
        if column != name and not cascade and top_k is None:
            raise BadInput(f"{name}={column!r}: is for ranks; give cascade=True or top_k=")
    for name, value in (("workers", workers), ("threads", threads), ("top_k", top_k)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise BadInput(f"{name} is {value}; give a whole number, at least 1, or leave it out")
    if nulls not in ("null", "raise"):
        raise BadInput(
            f"nulls is {nulls!r}; 'null' gives a null score to a null text, 'raise' refuses it"
        )
    where = str(model.path.resolve())
    how: dict[str, Any] = {
        "threads": threads,
        "device": device,
        "trust_remote_code": trust_remote_code,
    }
    alone = workers is not None and device == "cuda"
    if cascade:
        check_cascade(
            candidates, model, query_id, first, top_k, variant=variant, plan=plan, label=label
        )
        opener = functools.partial(open_cascade, where, **how)
        ranked = instances(CascadeUDF, workers, threads, device)(opener, (), alone, nulls)
        whole = by_cascade(candidates, ranked, query_id, (query, text, first), (score, rank))
        return whole if top_k is None else whole.where(col(rank) <= lit(top_k))
    model.variant(variant or VARIANT)
    if label is None and model.manifest.rank_label:
        one, *second = model.manifest.rank_label
        label = (one, second[0]) if second else one
    _check_label(label, model.manifest.labels)
    open_one = functools.partial(open_scorer, where, variant or VARIANT, plan=plan, **how)
    udf = instances(RerankUDF, workers, threads, device)(open_one, (), alone, label, nulls)
    method = udf.lists if label == "all" else udf.score
    # a column of nulls alone has no type
    texts = (col(name).cast(DataType.string()) for name in (query, text))
    if top_k is None:
        return candidates.into_batches(ROWS_A_CALL[device]).with_column(score, method(*texts))
    if label == "all":
        raise BadInput(
            "label='all' gives lists of logits, which rank nothing; give label=K or label=(K, L) with top_k"
        )
    numbered = candidates.with_column(ROW, monotonically_increasing_id()).into_batches(
        ROWS_A_CALL[device]
    )
    return _best(numbered.with_column(score, method(*texts)), query_id, query, score, rank, top_k)


def _best(
    scored: daft.DataFrame, query_id: str, query: str, score: str, rank: str, top_k: int
) -> daft.DataFrame:
    """Each query's best rows, with their ranks."""
    together = Window().partition_by(query_id)
    order = together.order_by(score, ROW, desc=[True, False], nulls_first=[False, False])
    text = col(query).cast(DataType.string())
    bounds = {LEAST: text.min().over(together), MOST: text.max().over(together)}
    ranked = scored.where(col(query_id).not_null()).with_column(
        rank, row_number().over(order).cast(DataType.int64())
    )
    whole = ranked.with_columns(bounds).where(_one_query(*map(col, (query_id, LEAST, MOST))))
    return whole.where(col(rank) <= lit(top_k)).exclude(ROW, *bounds)


@daft.func.batch(return_dtype=DataType.bool())
def _one_query(names: daft.Series, least: daft.Series, most: daft.Series) -> pa.Array:
    """True. Raises BadInput where the id of a query stands for several, of which these are the
    first and the last.
    """
    for name, one, other in zip(
        names.to_pylist(), least.to_pylist(), most.to_pylist(), strict=True
    ):
        if one != other:
            raise BadInput(
                f"query id {name!r:.60} stands for several queries: {[one, other]!s:.160}"
            )
    return pa.array([True] * len(names))


def _check_columns(
    candidates: daft.DataFrame, texts: Sequence[str], made: dict[str, str], overwrite: bool
) -> None:
    if not isinstance(candidates, daft.DataFrame):
        raise BadInput(f"candidates are {type(candidates).__name__}, not a Daft DataFrame")
    if not all(
        isinstance(name, str) and name.strip() not in ("", "*") for name in (*texts, *made.values())
    ):
        raise BadInput(f"columns {(*texts, *made.values())}: name each by a text other than '*'")
    types = {field.name: field.dtype for field in candidates.schema()}
    own = next((name for name in types if name.startswith(PREFIX)), None)
    if own is not None:
        raise BadInput(
            f"column {own!r}: names that start with {PREFIX!r} are xopt's own; rename it"
        )
    for name in texts:
        if name not in types:
            raise BadInput(
                f"no column {name!r} among {', '.join(types)}; name the columns with query= and text="
            )
        if types[name] not in (DataType.string(), DataType.null()):
            raise BadInput(f"column {name!r} is of {types[name]}, not of strings; cast it first")
    for kind, name in made.items():
        if name in texts:
            raise BadInput(f"{kind}={name!r} is the column of a text; name another")
        if name in types and not overwrite:
            raise BadInput(
                f"there is a column {name!r} already; name another with {kind}=, or replace it with overwrite=True"
            )


def _check_label(label: Label, labels: int) -> None:
    if labels == 1:
        if label is not None:
            raise BadInput(f"label={label!r}: the model has one label; leave label out")
        return
    ways = "label=K takes one logit, label=(K, L) the difference of two, label='all' a list a row"
    if label is None:
        raise BadInput(f"the model has {labels} labels, and no one score to rank by: {ways}")
    if label == "all":
        return
    numbers = label if isinstance(label, tuple) and len(label) == 2 else (label,)
    if not all(type(number) is int and 0 <= number < labels for number in numbers):
        raise BadInput(f"label={label!r}: the model's labels are 0 to {labels - 1}; {ways}")
