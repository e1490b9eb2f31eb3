"""Strategies inside Daft: a query that scores all pairs, with the time of every call."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import daft
import numpy as np
import pyarrow as pa
from daft import DataType, col
from numpy.typing import NDArray

from xopt.runtime.bench.strategy import STRATEGIES, ScorerSpec
from xopt.runtime.frames.cascade import QUERY_KEY, ROW, CascadeUDF, group_by_query
from xopt.runtime.frames.instances import make_udf
from xopt.runtime.frames.rerank import RerankUDF
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.plan import ROWS_A_CALL
from xopt.runtime.scoring.stages import Call, Stages

__all__ = ["DaftRun", "pairs_frame", "run_strategy"]

# A call's stamp, as JSON, is in its first row only: at 20,000 pairs a second a value for each
# row would cost as much as the model.
RESULT = DataType.struct({"logits": DataType.list(DataType.float32()), "stamp": DataType.string()})
WARM_UP_PAIRS = {"cpu": 8, "cuda": 1024}  # a GPU allocates for the shapes that it meets


class TimedUDF(RerankUDF):
    """The UDF of `rerank`, with the time of every call."""

    @daft.method.batch(return_dtype=RESULT)
    def timed(self, query: daft.Series, text: daft.Series) -> pa.StructArray:
        """Return each pair's logits, and the stamp of the call."""
        start = time.monotonic()
        before = self.scorer.stages
        scores = self.logits(query, text)
        call = _call(start, self.scorer.stages.minus(before), len(scores))
        labels = scores.size // len(scores)
        offsets = np.arange(len(scores) + 1, dtype=np.int32) * labels
        logits = pa.ListArray.from_arrays(offsets, pa.array(scores.ravel()))
        return _stamped(logits, self.load_s, call)


class TimedCascadeUDF(CascadeUDF):
    """The UDF of a cascade, with the time of every call."""

    @daft.method.batch(return_dtype=RESULT)
    def timed(self, *columns: daft.Series) -> pa.StructArray:
        """Return the logits of each query's pairs, null where not scored, and the stamp."""
        start = time.monotonic()
        before = self.scorer.stages
        scores, _ = self.ranked(*columns)
        pairs = sum(len(of_query) for of_query in scores)
        call = _call(start, self.scorer.stages.minus(before), pairs)
        return _stamped(pa.array(scores, pa.list_(pa.float32())), self.load_s, call)


def _call(start_s: float, stages: Stages, pairs: int) -> Call:
    return Call(os.getpid(), start_s, time.monotonic(), pairs, stages)


def _stamped(logits: pa.Array, load_s: float, call: Call) -> pa.StructArray:
    stamp = json.dumps({"load_s": load_s, "call": asdict(call)})
    stamps = pa.array([stamp] + [None] * (len(logits) - 1), pa.string())
    return pa.StructArray.from_arrays([logits, stamps], ["logits", "stamp"])


@dataclass(frozen=True)
class DaftRun:
    """A query over all pairs, and its calls; times are on the monotonic clock.

    scores: logits in the order given, NaN where a cascade did not score.
    """

    scores: NDArray[np.float32]
    calls: tuple[Call, ...]
    load_s: float
    start_s: float
    end_s: float


def run_strategy(
    spec: ScorerSpec,
    pairs: Sequence[Pair],
    frame: daft.DataFrame | None = None,
    by_query: tuple[Sequence[str], Sequence[float] | None] | None = None,
) -> Callable[[], DaftRun]:
    """Prepare a query that scores `pairs`, or a `frame` of them, and return a function to run it.

    `by_query` is for a cascade: each pair's query id, and its first-stage score where the cascade
    goes by one. Without it pairs of the same text belong to one query.

    An instance in this process is opened and warmed up here. Daft's worker processes live for one
    query only, so theirs open within it, and warm up before their first call.
    """
    warm_up = list(pairs[: WARM_UP_PAIRS[spec.device]])
    if not STRATEGIES[spec.strategy].by_query:
        return _run_scorer(spec, pairs, warm_up, frame)
    if by_query is None:
        by_query = ([query for query, _ in pairs], None)
    query_ids, first_scores = by_query
    return _run_cascade(spec, pairs, warm_up, query_ids, first_scores)


def _run_scorer(
    spec: ScorerSpec, pairs: Sequence[Pair], warm_up: list[Pair], frame: daft.DataFrame | None
) -> Callable[[], DaftRun]:
    strategy = STRATEGIES[spec.strategy]
    udf = make_udf(TimedUDF, strategy.workers, None, spec.device)(spec.open, warm_up)
    rows_a_call = strategy.rows_a_call
    if strategy.batch_size is None:
        rows_a_call = ROWS_A_CALL[spec.device]

    def query(frame: daft.DataFrame) -> DaftRun:
        if rows_a_call is not None:
            frame = frame.into_batches(rows_a_call)
        start = time.monotonic()
        timed = udf.timed(col("query"), col("text")).alias("timed")
        table = frame.select("pair_id", timed).sort("pair_id").to_arrow()
        results = table["timed"].combine_chunks()
        end = time.monotonic()
        logits = results.field("logits").flatten().to_numpy().reshape(len(results), -1)
        if logits.shape[1] == 1:
            logits = logits[:, 0]
        return _finished(logits, results.field("stamp").drop_null().to_pylist(), start, end)

    if strategy.workers is None:
        # A backend may compile for each new shape, and again for each of its callers. A long job
        # does that once, so it is no part of what is measured.
        for some in [pairs, pairs] if spec.compiles else [warm_up]:
            query(pairs_frame(some))
    return lambda: query(pairs_frame(pairs) if frame is None else frame)


def _run_cascade(
    spec: ScorerSpec,
    pairs: Sequence[Pair],
    warm_up: list[Pair],
    query_ids: Sequence[str],
    first_scores: Sequence[float] | None,
) -> Callable[[], DaftRun]:
    opener = make_udf(TimedCascadeUDF, None, None, spec.device)
    udf = opener(spec.open_cascade, warm_up, nulls="raise")
    first = list(first_scores or [0.0] * len(pairs))

    def query(count: int) -> DaftRun:
        frame = pairs_frame(
            pairs[:count], {"query_id": list(query_ids[:count]), "first": first[:count]}
        )
        start = time.monotonic()
        grouped, _ = group_by_query(frame, "query_id")
        timed = udf.timed(*(col(name) for name in (QUERY_KEY, "query", "text", ROW, "first")))
        results = grouped.with_column("timed", timed).with_columns(
            {"logits": col("timed")["logits"], "stamp": col("timed")["stamp"]}
        )
        by_pair = results.explode("pair_id", "logits").select("pair_id", "logits", "stamp")
        table = by_pair.sort("pair_id").to_arrow()
        end = time.monotonic()
        logits = table["logits"].to_numpy(zero_copy_only=False).astype(np.float32)
        # Every pair of the call's first query has got its stamp.
        stamps = set(table["stamp"].drop_null().to_pylist())
        return _finished(logits, stamps, start, end)

    query(len(pairs) if spec.compiles else len(warm_up))
    return lambda: query(len(pairs))


def _finished(
    logits: NDArray[np.float32], stamps: Iterable[str], start_s: float, end_s: float
) -> DaftRun:
    values = [json.loads(stamp) for stamp in stamps]
    calls = [Call.of(value["call"]) for value in values]
    return DaftRun(
        scores=logits,
        calls=tuple(sorted(calls, key=lambda call: call.start_s)),
        load_s=max(value["load_s"] for value in values),
        start_s=start_s,
        end_s=end_s,
    )


def pairs_frame(
    pairs: Sequence[Pair], others: dict[str, list[Any]] | None = None
) -> daft.DataFrame:
    """Return a DataFrame with pair_id, query and text, and other columns."""
    columns = {
        "pair_id": list(range(len(pairs))),
        "query": [query for query, _ in pairs],
        "text": [text for _, text in pairs],
    }
    return daft.from_pydict({**columns, **(others or {})})
