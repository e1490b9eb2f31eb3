"""Strategies: how Daft calls a scorer, and which scorer it calls: xopt's, or
sentence-transformers as people run it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.cascade import CascadeScorer, open_cascade
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.plan import ROWS_A_CALL, Forward
from xopt.runtime.scoring.scorer import PlannedScorer, Scorer, open_scorer
from xopt.runtime.scoring.stages import Stages, Stopwatch
from xopt.runtime.scoring.variants import BACKENDS

__all__ = ["SMALL_BATCHES", "STRATEGIES", "BatchScorer", "ScorerSpec", "Strategy", "strategy_named"]


@dataclass(frozen=True)
class Strategy:
    """How Daft calls a scorer.

    rows_a_call: rows that Daft gives the UDF at once, None for all that it has. batch_size: pairs
    that sentence-transformers pads together; None for xopt's planned forwards. workers: processes,
    each with its own model (Daft's max_concurrency); None for one instance within Daft's process.
    by_query: a query's rows come together, and the model folder's cascade ranks them.
    """

    name: str
    rows_a_call: int | None
    batch_size: int | None
    workers: int | None = None
    by_query: bool = False

    def rows_on(self, device: str) -> int | None:
        """Rows a call on a device: planned forwards want many, a GPU more."""
        return ROWS_A_CALL[device] if self.batch_size is None else self.rows_a_call


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("row", rows_a_call=1, batch_size=1),
        Strategy("default", rows_a_call=None, batch_size=32),
        Strategy("batch", rows_a_call=64, batch_size=64),
        Strategy("concurrent", rows_a_call=64, batch_size=64, workers=4),
        Strategy("planned", rows_a_call=None, batch_size=None),
        Strategy("batch-8", rows_a_call=None, batch_size=8),
        Strategy("batch-1", rows_a_call=None, batch_size=1),
        Strategy("cascade", rows_a_call=None, batch_size=None, by_query=True),
    )
}
SMALL_BATCHES = ("batch-8", "batch-1")  # what peers are tried with beside the default


class BatchScorer(Scorer):
    """Scores pairs as sentence-transformers batches them, for backends that it does not run here:
    no plan.
    """

    def __init__(self, scorer: PlannedScorer, batch_size: int) -> None:
        self.scorer, self.batch_size = scorer, batch_size
        self._watch = Stopwatch(callers=1)

    @property
    def stages(self) -> Stages:
        """Where the time of all calls so far went."""
        return self._watch.stages

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Logits of (query, document) pairs in the order given; see `Scorer`."""
        backend, start = self.scorer.backend, time.monotonic()
        tokens = self.scorer.encoder.encode(pairs)
        self._watch.encoded(time.monotonic() - start, tokens.truncated)
        logits = np.empty((len(pairs), self.scorer.labels), np.float32)
        order = np.argsort([-len(query) - len(text) for query, text in pairs], kind="stable")
        for first in range(0, len(order), self.batch_size):
            rows, start = order[first : first + self.batch_size], time.monotonic()
            forward = Forward(rows, int(tokens.lengths[rows].max()))
            batch, loaded = backend.load(tokens, forward), time.monotonic()
            logits[rows] = backend.finish([backend.forward(batch)])
            end = time.monotonic()
            self._watch.forwarded(
                end - loaded,
                loaded - start,
                len(rows),
                forward.width,
                int(tokens.lengths[rows].sum()),
            )
            self._watch.ran(end - start)
        return logits[:, 0] if self.scorer.labels == 1 else logits


@dataclass(frozen=True)
class ScorerSpec:
    """What a worker needs to open a scorer: a picklable value. `threads` None is all cores of the
    worker's machine.
    """

    folder: str
    variant: str
    strategy: str
    threads: int | None
    device: str = "cpu"
    plan: Plan | None = None
    trusted: bool = False

    @property
    def compiles(self) -> bool:
        """Whether the backend compiles for each shape that it meets."""
        folder = ModelFolder.open(Path(self.folder), self.trusted)
        return BACKENDS[folder.variant(self.variant).backend].compiles

    def open_cascade(self) -> CascadeScorer:
        """Open the cascade that the strategy calls. Raises BadInput; see
        `xopt.runtime.open_cascade`.
        """
        return open_cascade(
            ModelFolder.open(Path(self.folder), self.trusted),
            threads=self.threads,
            device=self.device,
        )

    def open(self) -> Scorer:
        """Open the scorer that the strategy calls. Raises BadInput; see `open_scorer`."""
        strategy, model = (
            STRATEGIES[self.strategy],
            ModelFolder.open(Path(self.folder), self.trusted),
        )
        if strategy.batch_size is None:
            return open_scorer(
                model, self.variant, plan=self.plan, threads=self.threads, device=self.device
            )
        variant, threads = model.variant(self.variant), self.threads or cores()
        if not BACKENDS[variant.backend].in_sentence_transformers(model):
            plan = Plan(callers=1, threads=threads, tokens=1)
            return BatchScorer(
                open_scorer(model, self.variant, plan=plan, device=self.device), strategy.batch_size
            )
        from xopt.runtime.bench.reference import ReferenceScorer

        return ReferenceScorer(model, variant, threads, strategy.batch_size, self.device)


def strategy_named(name: str) -> Strategy:
    """The strategy of this name. Raises BadInput with the names there are."""
    if name not in STRATEGIES:
        raise BadInput(f"strategy {name!r}: unknown; one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
