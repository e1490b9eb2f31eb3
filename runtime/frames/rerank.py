"""Candidates in a Daft DataFrame get scores: a thin batch UDF around a scorer that knows nothing of Daft."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("DO_NOT_TRACK", "1")  # read by daft as it is imported

import daft
import numpy as np
from daft import DataType, col
from numpy.typing import NDArray

from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import cores
from xopt.runtime.scoring.device import check_name, claim_gpu
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.plan import ROWS_A_CALL
from xopt.runtime.scoring.scorer import Scorer, open_scorer

__all__ = ["RerankUDF", "instances", "rerank"]


class RerankUDF:
    """Opens one scorer an instance and scores batches of rows; `alone` on its GPU where there are several."""

    def __init__(self, opener: Callable[[], Scorer], warm_up: Sequence[Pair] = (), alone: bool = False) -> None:
        start = time.monotonic()
        if alone:
            claim_gpu()
        self.scorer = opener()
        self.load_s = time.monotonic() - start
        if warm_up:
            self.scorer.score(warm_up)

    def scores(self, query: daft.Series, text: daft.Series) -> NDArray[np.float32]:
        """Logits of a batch of rows, in their order."""
        scores = self.scorer.score(list(zip(query.to_pylist(), text.to_pylist(), strict=True)))
        if len(scores) != len(query):  # Daft would spread a single result over the batch without a word
            raise RuntimeError(f"{len(scores)} scores for {len(query)} rows")
        return scores

    @daft.method.batch(return_dtype=DataType.float32())
    def score(self, query: daft.Series, text: daft.Series) -> NDArray[np.float32]:
        """One logit a row."""
        return self.scores(query, text)

    @daft.method.batch(return_dtype=DataType.list(DataType.float32()))
    def logits(self, query: daft.Series, text: daft.Series) -> list[NDArray[np.float32]]:
        """A list of logits a row, for models of several labels."""
        return list(self.scores(query, text))


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
    Ray reserves for it. `trust_remote_code` as in `open_scorer`. Daft keeps the row order on its native
    runner only: carry an id. Raises BadInput at once where the folder or the variant is missing, and while
    running where a text is null or the device is not there.
    """
    check_name(device)  # whether it is there, only a worker can tell
    model = ModelFolder.open(os.fspath(folder))
    model.variant(variant)
    opener = functools.partial(
        open_scorer,
        str(model.path.resolve()),
        variant,
        plan=plan,
        threads=threads,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    udf = instances(RerankUDF, workers, threads, device)(opener, (), workers is not None and device == "cuda")
    method = udf.score if model.manifest.labels == 1 else udf.logits
    return candidates.into_batches(ROWS_A_CALL[device]).with_column(score, method(col(query), col(text)))


def instances(kind: type[RerankUDF], workers: int | None, threads: int | None, device: str) -> Any:
    """A UDF class for Daft: one instance in this process, or `workers` processes that reserve `threads` CPUs each."""
    gpus = 1 if device == "cuda" else 0
    if workers is not None:
        return daft.cls(kind, max_concurrency=workers, cpus=threads, gpus=gpus)
    # All of the machine's cores for a call: exactly one instance in this process, one call at a time.
    return daft.cls(kind, cpus=cores(), gpus=gpus)
