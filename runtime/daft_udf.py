"""Scorers inside Daft: a thin batch UDF around a scorer that knows nothing of Daft."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")  # read by daft as it is imported

import daft
import numpy as np
from daft import DataType, col
from numpy.typing import NDArray

from xopt.runtime.encode import Pair
from xopt.runtime.folder import Plan
from xopt.runtime.machine import cores
from xopt.runtime.stages import Call, Stages
from xopt.runtime.strategy import PLANNED_ROWS, STRATEGIES, ScorerSpec

__all__ = ["DaftRun", "pairs_frame", "rerank", "run_strategy"]

RESULT = DataType.struct(
    {
        "logits": DataType.list(DataType.float32()),
        "call": DataType.int64(),
        "pid": DataType.int64(),
        "start_s": DataType.float64(),
        "end_s": DataType.float64(),
        "load_s": DataType.float64(),
        "stages": DataType.struct({field.name: DataType.float64() for field in fields(Stages)}),
    }
)
WARM_UP_PAIRS = 8
PLANNED = "planned"


class RerankUDF:
    """Opens one scorer an instance and scores batches of rows."""

    def __init__(self, spec: ScorerSpec, warm_up: Sequence[Pair] = ()) -> None:
        start = time.monotonic()
        self.scorer = spec.open()
        self.load_s = time.monotonic() - start
        self.calls = 0
        if warm_up:
            self.scorer.score(warm_up)

    def _score(self, query: daft.Series, text: daft.Series) -> NDArray[np.float32]:
        scores = self.scorer.score(list(zip(query.to_pylist(), text.to_pylist(), strict=True)))
        if len(scores) != len(query):  # Daft would spread a single result over the batch without a word
            raise RuntimeError(f"{len(scores)} scores for {len(query)} rows")
        return scores

    @daft.method.batch(return_dtype=DataType.float32())
    def score(self, query: daft.Series, text: daft.Series) -> NDArray[np.float32]:
        """One logit a row."""
        return self._score(query, text)

    @daft.method.batch(return_dtype=DataType.list(DataType.float32()))
    def logits(self, query: daft.Series, text: daft.Series) -> list[NDArray[np.float32]]:
        """A list of logits a row, for models of several labels."""
        return list(self._score(query, text))

    @daft.method.batch(return_dtype=RESULT)
    def timed(self, query: daft.Series, text: daft.Series) -> list[dict[str, Any]]:
        """Logits with the call that they came from, its time on the system-wide monotonic clock and where that went."""
        start, before = time.monotonic(), self.scorer.stages
        scores = self._score(query, text)
        stamp = {
            "call": self.calls,
            "pid": os.getpid(),
            "start_s": start,
            "end_s": time.monotonic(),
            "load_s": self.load_s,
            "stages": asdict(self.scorer.stages.minus(before)),
        }
        self.calls += 1
        return [{"logits": np.atleast_1d(row).tolist(), **stamp} for row in scores]


def rerank(
    candidates: daft.DataFrame,
    folder: str | os.PathLike[str],
    variant: str = "onnx-fp32",
    *,
    query: str = "query",
    text: str = "text",
    score: str = "score",
    plan: Plan | None = None,
    device: str = "cpu",
) -> daft.DataFrame:
    """Score a Daft DataFrame of candidates: the same rows with a float32 column `score`, lazily.

    `query` and `text` name the columns with the two texts. A model of several labels gives a list a
    row. Runs one instance, which uses the whole machine by its plan, over batches of 1024 rows. Daft
    keeps the row order on its native runner only: carry an id. Raises BadInput at once where the
    folder or the variant is missing, and while running where a text is null.
    """
    from xopt.runtime.folder import ModelFolder

    model = ModelFolder.open(os.fspath(folder))
    model.variant(variant)
    spec = ScorerSpec(str(model.path.resolve()), variant, PLANNED, cores(), device, plan)
    udf = _udf(spec, ())
    method = udf.score if model.manifest.labels == 1 else udf.logits
    return candidates.into_batches(PLANNED_ROWS).with_column(score, method(col(query), col(text)))


@dataclass(frozen=True)
class DaftRun:
    """One query over all pairs: logits in the order given, the calls, and times on the monotonic clock."""

    scores: NDArray[np.float32]
    calls: tuple[Call, ...]
    load_s: float
    start_s: float
    end_s: float


def run_strategy(spec: ScorerSpec, pairs: Sequence[Pair], frame: daft.DataFrame | None = None) -> Callable[[], DaftRun]:
    """Make ready a query that scores `pairs`, or a `frame` of them, as the strategy says; call the result to run it.

    An instance within this process is opened and warmed up here. Daft's worker processes live for
    one query only, so theirs open within it; each warms up before its first call.
    """
    strategy = STRATEGIES[spec.strategy]
    warm_up = list(pairs[:WARM_UP_PAIRS])
    udf = _udf(spec, warm_up)

    def query(frame: daft.DataFrame) -> DaftRun:
        if strategy.rows_a_call is not None:
            frame = frame.into_batches(strategy.rows_a_call)
        start = time.monotonic()
        rows = frame.select("pair_id", udf.timed(col("query"), col("text")).alias("timed")).sort("pair_id").to_pydict()
        return _collect(rows["timed"], start, time.monotonic())

    if strategy.workers is None:
        query(pairs_frame(warm_up))
    return lambda: query(frame if frame is not None else pairs_frame(pairs))


def _collect(rows: list[dict[str, Any]], start_s: float, end_s: float) -> DaftRun:
    logits = np.array([row["logits"] for row in rows], np.float32)
    pairs = Counter((row["pid"], row["call"]) for row in rows)
    calls = {(row["pid"], row["call"]): row for row in rows}
    return DaftRun(
        logits[:, 0] if logits.shape[1] == 1 else logits,
        tuple(
            Call(row["pid"], row["start_s"], row["end_s"], pairs[call], Stages(**row["stages"]))
            for call, row in calls.items()
        ),
        max(row["load_s"] for row in rows),
        start_s,
        end_s,
    )


def pairs_frame(pairs: Sequence[Pair]) -> daft.DataFrame:
    """A DataFrame with pair_id, query and text."""
    queries, texts = zip(*pairs, strict=True)
    return daft.from_pydict({"pair_id": list(range(len(pairs))), "query": list(queries), "text": list(texts)})


def _udf(spec: ScorerSpec, warm_up: Sequence[Pair]) -> Any:
    strategy = STRATEGIES[spec.strategy]
    gpus = 1 if spec.device == "cuda" else 0
    if strategy.workers is not None:
        return daft.cls(RerankUDF, max_concurrency=strategy.workers, gpus=gpus)(spec, warm_up)
    # All of the machine's cores for a call: exactly one instance in this process, one call at a time.
    return daft.cls(RerankUDF, cpus=cores(), gpus=gpus)(spec, warm_up)
