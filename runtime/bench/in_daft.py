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
from xopt.runtime.frames.cascade import KEY, ROW, CascadeUDF, together
from xopt.runtime.frames.instances import instances
from xopt.runtime.frames.rerank import RerankUDF
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.stages import Call

__all__ = ["DaftRun", "pairs_frame", "run_strategy"]

# A call's stamp, as JSON, stands in its first row only: at 20,000 pairs a second a value for each
# row would cost as much as the model.
RESULT = DataType.struct({"logits": DataType.list(DataType.float32()), "stamp": DataType.string()})
WARM_UP_PAIRS = {"cpu": 8, "cuda": 1024}  # a GPU allocates for the shapes that it meets


class TimedUDF(RerankUDF):
    """The same instance, whose calls are timed."""

    @daft.method.batch(return_dtype=RESULT)
    def timed(self, query: daft.Series, text: daft.Series) -> pa.StructArray:
        """Logits, and the call that they came from: its time on the system-wide monotonic clock
        and where that went.
        """
        start, before = time.monotonic(), self.scorer.stages
        scores = self.logits(query, text)
        call = Call(
            os.getpid(), start, time.monotonic(), len(scores), self.scorer.stages.minus(before)
        )
        stamp = json.dumps({"load_s": self.load_s, "call": asdict(call)})
        labels = scores.size // len(scores)
        logits = pa.ListArray.from_arrays(
            np.arange(len(scores) + 1, dtype=np.int32) * labels, pa.array(scores.ravel())
        )
        return pa.StructArray.from_arrays(
            [logits, pa.array([stamp, *[None] * (len(scores) - 1)], pa.string())],
            ["logits", "stamp"],
        )


class TimedCascadeUDF(CascadeUDF):
    """The same instance, whose calls are timed."""

    @daft.method.batch(return_dtype=RESULT)
    def timed(self, *columns: daft.Series) -> pa.StructArray:
        """For each query the logits of its pairs, null where they were not scored, and the call;
        see `TimedUDF`.
        """
        start, before = time.monotonic(), self.scorer.stages
        scores, _ = self.ranked(*columns)
        call = Call(
            os.getpid(),
            start,
            time.monotonic(),
            sum(map(len, scores)),
            self.scorer.stages.minus(before),
        )
        stamp = json.dumps({"load_s": self.load_s, "call": asdict(call)})
        stamps = pa.array([stamp, *[None] * (len(scores) - 1)], pa.string())
        return pa.StructArray.from_arrays(
            [pa.array(scores, pa.list_(pa.float32())), stamps], ["logits", "stamp"]
        )


@dataclass(frozen=True)
class DaftRun:
    """One query over all pairs: logits in the order given, the calls, and times on the monotonic
    clock.

    NaN for pairs that were not scored.
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
    """Make ready a query that scores `pairs`, or a `frame` of them, as the strategy says; call
    the result to run it.

    `by_query` is what a cascade ranks by beside the pairs: the id of each one's query and, where
    it goes by such, each one's first-stage score; without it a query is what has one text. An
    instance within this process is opened and warmed up here, twice on all pairs where its
    backend compiles for each new shape, which a long job does once, and each of its callers for
    itself. Daft's worker processes live for one query only, so theirs open within it; each warms
    up before its first call.
    """
    strategy = STRATEGIES[spec.strategy]
    warm_up = list(pairs[: WARM_UP_PAIRS[spec.device]])
    if strategy.by_query:
        return _run_cascade(
            spec, pairs, warm_up, *(by_query or ([query for query, _ in pairs], None))
        )
    udf = instances(TimedUDF, strategy.workers, None, spec.device)(spec.open, warm_up)

    def query(frame: daft.DataFrame) -> DaftRun:
        rows_a_call = strategy.rows_on(spec.device)
        if rows_a_call is not None:
            frame = frame.into_batches(rows_a_call)
        start = time.monotonic()
        timed = udf.timed(col("query"), col("text")).alias("timed")
        made = frame.select("pair_id", timed).sort("pair_id").to_arrow()["timed"].combine_chunks()
        return _collect(made, start, time.monotonic())

    if strategy.workers is None:
        for ahead in [list(pairs)] * 2 if spec.compiles else [warm_up]:
            query(pairs_frame(ahead))
    return lambda: query(frame if frame is not None else pairs_frame(pairs))


def _run_cascade(
    spec: ScorerSpec,
    pairs: Sequence[Pair],
    warm_up: list[Pair],
    query_ids: Sequence[str],
    first_scores: Sequence[float] | None,
) -> Callable[[], DaftRun]:
    """A query that ranks the candidates of each query."""
    udf = instances(TimedCascadeUDF, None, None, spec.device)(
        spec.open_cascade, warm_up, nulls="raise"
    )

    def query(frame: daft.DataFrame) -> DaftRun:
        start = time.monotonic()
        grouped, _ = together(frame, "query_id")
        timed = grouped.with_column(
            "timed", udf.timed(*map(col, (KEY, "query", "text", ROW, "first")))
        )
        columns = timed.with_columns({name: col("timed")[name] for name in ("logits", "stamp")})
        made = (
            columns.explode("pair_id", "logits")
            .select("pair_id", "logits", "stamp")
            .sort("pair_id")
            .to_arrow()
        )
        end = time.monotonic()
        stamps = set(made["stamp"].drop_null().to_pylist())
        return _run(
            made["logits"].to_numpy(zero_copy_only=False).astype(np.float32), stamps, start, end
        )

    def ranked(count: int) -> daft.DataFrame:
        first = list(first_scores or [0.0] * len(pairs))[:count]
        return pairs_frame(pairs[:count], {"query_id": list(query_ids[:count]), "first": first})

    query(ranked(len(pairs) if spec.compiles else len(warm_up)))
    return lambda: query(ranked(len(pairs)))


def _collect(made: pa.StructArray, start_s: float, end_s: float) -> DaftRun:
    logits = made.field("logits").flatten().to_numpy().reshape(len(made), -1)
    logits = logits[:, 0] if logits.shape[1] == 1 else logits
    return _run(logits, made.field("stamp").drop_null().to_pylist(), start_s, end_s)


def _run(
    logits: NDArray[np.float32], stamped: Iterable[str], start_s: float, end_s: float
) -> DaftRun:
    stamps = [json.loads(stamp) for stamp in stamped]
    calls = [Call.of(stamp["call"]) for stamp in stamps]
    return DaftRun(
        logits,
        tuple(sorted(calls, key=lambda call: call.start_s)),
        max(stamp["load_s"] for stamp in stamps),
        start_s,
        end_s,
    )


def pairs_frame(
    pairs: Sequence[Pair], others: dict[str, list[Any]] | None = None
) -> daft.DataFrame:
    """A DataFrame with pair_id, query and text, and other columns."""
    queries, texts = zip(*pairs, strict=True)
    columns = {"pair_id": list(range(len(pairs))), "query": list(queries), "text": list(texts)}
    return daft.from_pydict({**columns, **(others or {})})
