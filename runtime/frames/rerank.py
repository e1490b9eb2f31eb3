"""Scorers inside Daft: a thin batch UDF around a scorer that knows nothing of Daft."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")  # read by daft as it is imported

import daft
import numpy as np
import pyarrow as pa
from daft import DataType, col
from numpy.typing import NDArray

from xopt.runtime.bench.strategy import PLANNED_ROWS, STRATEGIES, ScorerSpec
from xopt.runtime.folder import Plan
from xopt.runtime.machine import cores
from xopt.runtime.scoring.device import check_name, claim_gpu
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.stages import Call

__all__ = ["DaftRun", "pairs_frame", "rerank", "run_strategy"]

# A call's stamp, as JSON, stands in its first row only: at 20,000 pairs a second a value for each row would cost as
# much as the model.
RESULT = DataType.struct({"logits": DataType.list(DataType.float32()), "stamp": DataType.string()})
WARM_UP_PAIRS = {"cpu": 8, "cuda": 1024}  # a GPU allocates for the shapes that it meets
PLANNED = "planned"


class RerankUDF:
    """Opens one scorer an instance and scores batches of rows; `alone` on its GPU where there are several."""

    def __init__(self, spec: ScorerSpec, warm_up: Sequence[Pair] = (), alone: bool = False) -> None:
        start = time.monotonic()
        if alone:
            claim_gpu()
        self.scorer = spec.open()
        self.load_s = time.monotonic() - start
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
    def timed(self, query: daft.Series, text: daft.Series) -> pa.StructArray:
        """Logits, and the call that they came from: its time on the system-wide monotonic clock and where that went."""
        start, before = time.monotonic(), self.scorer.stages
        scores = self._score(query, text)
        call = Call(os.getpid(), start, time.monotonic(), len(scores), self.scorer.stages.minus(before))
        stamp = json.dumps({"load_s": self.load_s, "call": asdict(call)})
        labels = scores.size // len(scores)
        logits = pa.ListArray.from_arrays(np.arange(len(scores) + 1, dtype=np.int32) * labels, pa.array(scores.ravel()))
        return pa.StructArray.from_arrays(
            [logits, pa.array([stamp, *[None] * (len(scores) - 1)], pa.string())], ["logits", "stamp"]
        )


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
    workers: int | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
) -> daft.DataFrame:
    """Score a Daft DataFrame of candidates: the same rows with a float32 column `score`, lazily.

    `query` and `text` name the columns with the two texts. A model of several labels gives a list a
    row. Runs one instance, which uses the whole machine by its plan, over batches of 1024 rows (16,384
    on a GPU). `workers` is how many processes to run instead, actors on Ray, each with a GPU of its own where
    `device` is "cuda"; where several share a machine, `threads` is what each may use, and the CPUs that
    Ray reserves for it. `trust_remote_code` is that of `open_scorer`. Daft keeps the row order on its native
    runner only: carry an id. Raises BadInput at once where the folder or the variant is missing, and while
    running where a text is null or the device is not there.
    """
    from xopt.runtime.folder import ModelFolder

    check_name(device)  # whether it is there, only a worker can tell
    model = ModelFolder.open(os.fspath(folder))
    model.variant(variant)
    spec = ScorerSpec(str(model.path.resolve()), variant, PLANNED, threads, device, plan, trust_remote_code)
    udf = _udf(spec, (), workers)
    method = udf.score if model.manifest.labels == 1 else udf.logits
    return candidates.into_batches(PLANNED_ROWS[device]).with_column(score, method(col(query), col(text)))


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
    warm_up = list(pairs[: WARM_UP_PAIRS[spec.device]])
    udf = _udf(spec, warm_up)

    def query(frame: daft.DataFrame) -> DaftRun:
        rows_a_call = strategy.rows_on(spec.device)
        if rows_a_call is not None:
            frame = frame.into_batches(rows_a_call)
        start = time.monotonic()
        timed = udf.timed(col("query"), col("text")).alias("timed")
        made = frame.select("pair_id", timed).sort("pair_id").to_arrow()["timed"].combine_chunks()
        return _collect(made, start, time.monotonic())

    if strategy.workers is None:
        query(pairs_frame(warm_up))
    return lambda: query(frame if frame is not None else pairs_frame(pairs))


def _collect(made: pa.StructArray, start_s: float, end_s: float) -> DaftRun:
    logits = made.field("logits").flatten().to_numpy().reshape(len(made), -1)
    stamps = [json.loads(stamp) for stamp in made.field("stamp").drop_null().to_pylist()]
    calls = [Call.of(stamp["call"]) for stamp in stamps]
    return DaftRun(
        logits[:, 0] if logits.shape[1] == 1 else logits,
        tuple(sorted(calls, key=lambda call: call.start_s)),
        max(stamp["load_s"] for stamp in stamps),
        start_s,
        end_s,
    )


def pairs_frame(pairs: Sequence[Pair]) -> daft.DataFrame:
    """A DataFrame with pair_id, query and text."""
    queries, texts = zip(*pairs, strict=True)
    return daft.from_pydict({"pair_id": list(range(len(pairs))), "query": list(queries), "text": list(texts)})


def _udf(spec: ScorerSpec, warm_up: Sequence[Pair], workers: int | None = None) -> Any:
    gpus = 1 if spec.device == "cuda" else 0
    if workers is not None:
        return daft.cls(RerankUDF, max_concurrency=workers, cpus=spec.threads, gpus=gpus)(spec, warm_up, gpus > 0)
    if STRATEGIES[spec.strategy].workers is not None:
        return daft.cls(RerankUDF, max_concurrency=STRATEGIES[spec.strategy].workers, gpus=gpus)(spec, warm_up)
    # All of the machine's cores for a call: exactly one instance in this process, one call at a time.
    return daft.cls(RerankUDF, cpus=cores(), gpus=gpus)(spec, warm_up)
