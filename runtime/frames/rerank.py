"""Scores candidates in a Daft DataFrame, by a batch UDF around a scorer."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from xopt.runtime.frames.cascade import (
    ROW,
    CascadeUDF,
    check_cascade,
    rank_by_cascade,
    types_of,
)
from xopt.runtime.frames.columns import PREFIX, FrameColumns
from xopt.runtime.frames.instances import NullScores, make_udf, open_timed
from xopt.runtime.scoring.default import default_variant
from xopt.runtime.scoring.device import check_name
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.plan import ROWS_A_CALL
from xopt.runtime.scoring.scorer import Scorer, open_scorer

__all__ = ["Label", "RerankUDF", "rerank", "score"]

# The first and the last query of an id, in alphabetical order.
FIRST_QUERY = f"{PREFIX}first_query"
LAST_QUERY = f"{PREFIX}last_query"

Label = int | tuple[int, int] | Literal["all"] | None


class RerankUDF:
    """Scores batches of rows by the scorer that `opener` opens.

    With `own_gpu` it is opened on a GPU that no other worker has. A row with a
    null text has a null score, or raises BadInput with `nulls="raise"`. A score
    that is not finite is null.
    """

    def __init__(
        self,
        opener: Callable[[], Scorer],
        warm_up: Sequence[Pair] = (),
        own_gpu: bool = False,
        label: Label = None,
        nulls: str = "null",
    ) -> None:
        self.scorer, self.load_s = open_timed(opener, own_gpu)
        self.label = label
        self.nulls = nulls
        self.null_scores = NullScores()
        if warm_up:
            self.scorer.logits(warm_up)

    def logits(self, query: daft.Series, text: daft.Series) -> NDArray[np.float32]:
        """Logits, float32[n] or float32[n, labels]; NaN where a text is null."""
        pairs = list(zip(query.to_pylist(), text.to_pylist(), strict=True))
        rows = [row for row, pair in enumerate(pairs) if None not in pair]
        if len(rows) < len(pairs):
            if self.nulls == "raise":
                first = next(pair for pair in pairs if None in pair)
                raise BadInput(
                    f"a row has a null text: query {first[0]!r:.80}, "
                    f"text {first[1]!r:.80}; or give `nulls='null'`"
                )
            self.null_scores.add(len(pairs) - len(rows), "have a null text")
        found = self.scorer.logits([pairs[row] for row in rows])
        # Daft would spread a single result over the batch without a word.
        if len(found) != len(rows):
            raise RuntimeError(f"{len(found)} scores for {len(rows)} rows")
        logits = np.full((len(pairs), *found.shape[1:]), np.nan, np.float32)
        logits[rows] = found
        return logits

    @daft.method.batch(return_dtype=DataType.float32())
    def score(self, query: daft.Series, text: daft.Series) -> pa.Array:
        """Score by the logit, by that of `label`, or by the difference of two."""
        logits = self.logits(query, text)
        if isinstance(self.label, tuple):
            logits = logits[:, self.label[0]] - logits[:, self.label[1]]
        elif isinstance(self.label, int):
            logits = logits[:, self.label]
        return pa.array(logits, mask=self._not_finite(logits, query, text))

    @daft.method.batch(return_dtype=DataType.list(DataType.float32()))
    def score_lists(self, query: daft.Series, text: daft.Series) -> pa.Array:
        """List the logits of all labels for each row."""
        logits = self.logits(query, text)
        lists = logits.tolist()
        for row in np.flatnonzero(self._not_finite(logits, query, text)):
            lists[row] = None
        return pa.array(lists)

    def _not_finite(
        self,
        logits: NDArray[np.float32],
        query: daft.Series,
        text: daft.Series,
    ) -> NDArray[np.bool_]:
        """Find rows with a logit that is not finite, and count those with both texts."""
        not_finite = ~np.isfinite(logits)
        if logits.ndim > 1:
            not_finite = np.any(not_finite, axis=1)
        null_texts = np.array((query.is_null() | text.is_null()).to_pylist(), bool)
        count = int((not_finite & ~null_texts).sum())
        self.null_scores.add(count, "have a score that is not finite")
        return not_finite


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
    """Score the candidates of a Daft DataFrame with a model folder, lazily.

    - `variant`: what scores, by default the one recommended for this machine.
    - `query`, `text`, `query_id`: the columns to read.
    - `score`, `rank`: the columns to write. One that is there is replaced only with `overwrite`.
    - `top_k`: keep the best rows of each `query_id`, with a `rank` from 1. Ties stay as they
      stood, nulls are last, and rows of a null `query_id` are left out.
    - `cascade`: rank by the folder's cascade, see `open_cascade`. A query's rows stand in the
      first stage's order. Rows that are not scored rank last.
    - `first`: the column of the first stage's scores, for a cascade made with them.
    - `nulls`: with "null" a null text has a null score, with "raise" it raises BadInput.
    - `label`: for models of several labels, in place of the one of the export. It is a number,
      two for the difference of their logits, or "all" for a list of all logits.
    - `plan`: how pairs are put together, by default as tuned.
    - `workers`: run this many processes or Ray actors, with `threads` CPUs each. On "cuda"
      each has a GPU. Without it, one instance uses the whole machine.
    - `trust_remote_code`: that of `open_scorer`.

    Returns the same rows with a float32 column `score`, the logits. A score that is not finite
    is null. Warnings count nulls, but Daft hides those of `workers`. One instance takes batches
    of 1,024 rows, or 16,384 on "cuda". Only Daft's native runner keeps the order of rows, so
    carry an id.

    Raises BadInput at once where an argument does not fit, or in a worker without the device.
    """
    _check_arguments(workers=workers, threads=threads, top_k=top_k, nulls=nulls, device=device)
    model = ModelFolder.open(os.fspath(folder))
    columns = FrameColumns(query, text, score, query_id, rank, first)
    columns.check(types_of(candidates), cascade, top_k, overwrite)
    path = str(model.path.resolve())
    udfs = _UDFs(path, device, workers, threads, trust_remote_code, nulls)
    if cascade:
        check_cascade(candidates, model, columns, top_k, variant=variant, plan=plan, label=label)
        ranked = rank_by_cascade(candidates, udfs.cascade(), columns)
        return ranked if top_k is None else ranked.where(col(rank) <= lit(top_k))
    label = _label_of(model, label, top_k)
    udf = udfs.scorer(_variant_of(model, variant, device), plan, label)
    return _scored(candidates, udf, columns, label, device, top_k)


def score(
    query: daft.Expression,
    text: daft.Expression,
    *,
    model: str | os.PathLike[str],
    variant: str | None = None,
    label: Label = None,
    nulls: Literal["null", "raise"] = "null",
    plan: Plan | None = None,
    device: str = "cpu",
    workers: int | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
) -> daft.Expression:
    """Make a Daft expression: the score of each query and text by a model folder.

    ```python
    score = xopt.score(col("query"), col("text"), model="models/minilm")
    frame.with_column("score", score)
    ```

    It is float32, or with `label="all"` a list of all logits. The arguments are those of `rerank`,
    whose BadInput it raises.
    """
    _check_arguments(workers=workers, threads=threads, nulls=nulls, device=device)
    folder = ModelFolder.open(os.fspath(model))
    label = _label_of(folder, label, None)
    path = str(folder.path.resolve())
    udfs = _UDFs(path, device, workers, threads, trust_remote_code, nulls)
    udf = udfs.scorer(_variant_of(folder, variant, device), plan, label)
    of_texts = udf.score_lists if label == "all" else udf.score
    texts = [each.cast(DataType.string()) for each in (query, text)]
    expression: daft.Expression = of_texts(*texts)
    return expression


def _variant_of(model: ModelFolder, variant: str | None, device: str) -> str:
    """Return the variant that scores. Raises BadInput where the folder has none of that name."""
    if variant is None:
        # Whether there is a GPU, and which one, only a worker can tell.
        return default_variant(model, device if device == "cpu" else None)
    return model.variant(variant).name


def _check_arguments(nulls: str, device: str, **numbers: int | None) -> None:
    check_name(device)  # whether it is there, only a worker can tell
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise BadInput(f"`{name}={value}`: give a whole number, at least 1, or leave it out")
    if nulls not in ("null", "raise"):
        raise BadInput(
            f"`nulls={nulls!r}`: 'null' gives null scores to null texts, 'raise' refuses them"
        )


@dataclass(frozen=True)
class _UDFs:
    """Makes UDFs that open a model folder. Fields are as the arguments of `rerank`."""

    folder: str
    device: str
    workers: int | None
    threads: int | None
    trust_remote_code: bool
    nulls: str

    def cascade(self) -> Any:
        return self._udf(CascadeUDF, open_cascade)

    def scorer(self, variant: str, plan: Plan | None, label: Label) -> Any:
        opener = functools.partial(open_scorer, variant=variant, plan=plan)
        return self._udf(RerankUDF, opener, label=label)

    def _udf(self, kind: type[Any], opener: Callable[..., Any], **others: Any) -> Any:
        opener = functools.partial(
            opener,
            self.folder,
            threads=self.threads,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
        )
        own_gpu = self.workers is not None and self.device == "cuda"
        udf = make_udf(kind, self.workers, self.threads, self.device)
        return udf(opener, own_gpu=own_gpu, nulls=self.nulls, **others)


def _label_of(model: ModelFolder, label: Label, top_k: int | None) -> Label:
    """Return the label to score by. Raises BadInput where the model has no such label."""
    labels = model.manifest.labels
    if labels == 1:
        if label is not None:
            raise BadInput(f"`label={label!r}`: the model has one label; leave it out")
        return None
    if label is None and model.manifest.rank_label:
        own = model.manifest.rank_label
        return (own[0], own[1]) if len(own) > 1 else own[0]
    choices = (
        "`label=K` takes one logit, `label=(K, L)` the difference of two, `label='all'` lists all"
    )
    if label is None:
        raise BadInput(f"the model has {labels} labels, and none that ranks: {choices}")
    if label == "all":
        if top_k is not None:
            raise BadInput("`label='all'`: lists rank nothing; leave out it or `top_k=`")
        return label
    numbers = label if isinstance(label, tuple) and len(label) == 2 else (label,)
    if not all(type(number) is int and 0 <= number < labels for number in numbers):
        raise BadInput(f"`label={label!r}`: labels are 0 to {labels - 1}; {choices}")
    return label


def _scored(
    candidates: daft.DataFrame,
    udf: Any,
    columns: FrameColumns,
    label: Label,
    device: str,
    top_k: int | None,
) -> daft.DataFrame:
    if top_k is not None:
        candidates = candidates.with_column(ROW, monotonically_increasing_id())
    score = udf.score_lists if label == "all" else udf.score
    # A column of nulls alone has no type.
    texts = [col(name).cast(DataType.string()) for name in (columns.query, columns.text)]
    batches = candidates.into_batches(ROWS_A_CALL[device])
    scored = batches.with_column(columns.score, score(*texts))
    return scored if top_k is None else _best(scored, columns, top_k)


def _best(scored: daft.DataFrame, columns: FrameColumns, top_k: int) -> daft.DataFrame:
    """Keep each query's best rows, with their ranks."""
    query_id = col(columns.query_id)
    of_query = Window().partition_by(columns.query_id)
    by_score = of_query.order_by(
        columns.score,
        ROW,
        desc=[True, False],
        nulls_first=[False, False],
    )
    rank = row_number().over(by_score).cast(DataType.int64())
    text = col(columns.query).cast(DataType.string())
    ranked = scored.where(query_id.not_null()).with_column(columns.rank, rank)
    ranked = ranked.with_column(FIRST_QUERY, text.min().over(of_query))
    ranked = ranked.with_column(LAST_QUERY, text.max().over(of_query))
    ranked = ranked.where(_one_query(query_id, col(FIRST_QUERY), col(LAST_QUERY)))
    best = ranked.where(col(columns.rank) <= lit(top_k))
    return best.exclude(ROW, FIRST_QUERY, LAST_QUERY)


@daft.func.batch(return_dtype=DataType.bool())
def _one_query(query_ids: daft.Series, first: daft.Series, last: daft.Series) -> pa.Array:
    """Raise BadInput where an id stands for several queries; else true for each row."""
    rows = zip(query_ids.to_pylist(), first.to_pylist(), last.to_pylist(), strict=True)
    for query_id, one, other in rows:
        if one != other:
            raise BadInput(
                f"query id {query_id!r:.60} stands for several queries: "
                f"{[one, other]!s:.160}; give each an id of its own"
            )
    return pa.array([True] * len(query_ids))
