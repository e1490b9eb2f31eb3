"""Strategies: how Daft calls a scorer, xopt's or sentence-transformers as people run it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.bench.ctranslate2 import CTRANSLATE2, ctranslate2_kind
from xopt.runtime.cascade.cascade import CascadeScorer, open_cascade
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.plan import Forward
from xopt.runtime.scoring.scorer import PlannedScorer, Scorer, open_scorer
from xopt.runtime.scoring.stages import Stages, Stopwatch
from xopt.runtime.scoring.variants import BACKENDS

__all__ = ["SMALL_BATCHES", "STRATEGIES", "BatchScorer", "ScorerSpec", "Strategy", "strategy_named"]

# The bench opens CTranslate2's variants as any other; users are not offered them.
BACKENDS[CTRANSLATE2] = ctranslate2_kind


@dataclass(frozen=True)
class Strategy:
    """How Daft calls a scorer.

    rows_a_call: rows that Daft gives the UDF at once, None for all that it has.
    batch_size: pairs that sentence-transformers pads together. None for planned forwards, which
    get as many rows a call as is best on the device.
    workers: processes with a model each (Daft's max_concurrency), None for Daft's own process.
    by_query: whether the folder's cascade ranks each query's rows together.
    """

    name: str
    rows_a_call: int | None
    batch_size: int | None
    workers: int | None = None
    by_query: bool = False


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
    """Scores padded batches as sentence-transformers does, with a backend that it does not run."""

    def __init__(self, scorer: PlannedScorer, batch_size: int) -> None:
        self.scorer = scorer
        self.batch_size = batch_size
        self._watch = Stopwatch()

    @property
    def stages(self) -> Stages:
        return self._watch.stages

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        backend = self.scorer.backend
        start = time.monotonic()
        tokens = self.scorer.encoder.encode(pairs)
        self._watch.encoded(time.monotonic() - start, tokens.truncated)
        logits = np.empty((len(pairs), self.scorer.labels), np.float32)
        order = np.argsort([-len(query) - len(text) for query, text in pairs], kind="stable")
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            start = time.monotonic()
            forward = Forward(rows, int(tokens.lengths[rows].max()))
            batch = backend.load(tokens, forward)
            loaded = time.monotonic()
            logits[rows] = backend.finish([backend.forward(batch)])
            end = time.monotonic()
            text_tokens = int(tokens.lengths[rows].sum())
            self._watch.forwarded(
                end - loaded, loaded - start, len(rows), forward.width, text_tokens
            )
            self._watch.ran(end - start)
        return logits[:, 0] if self.scorer.labels == 1 else logits


@dataclass(frozen=True)
class ScorerSpec:
    """What a process needs to open a scorer; `threads` None is all cores of its machine."""

    folder: str
    variant: str
    strategy: str
    threads: int | None
    device: str = "cpu"
    plan: Plan | None = None
    trusted: bool = False

    def _open_folder(self) -> ModelFolder:
        return ModelFolder.open(Path(self.folder), self.trusted)

    @property
    def compiles(self) -> bool:
        return BACKENDS[self._open_folder().variant(self.variant).backend].compiles

    def open_cascade(self) -> CascadeScorer:
        """Open the cascade that the strategy calls. Raises BadInput as `open_cascade` does."""
        return open_cascade(self._open_folder(), threads=self.threads, device=self.device)

    def open(self) -> Scorer:
        """Open the scorer that the strategy calls. Raises BadInput as `open_scorer` does."""
        folder = self._open_folder()
        batch_size = STRATEGIES[self.strategy].batch_size
        if batch_size is None:
            return open_scorer(
                folder, self.variant, plan=self.plan, threads=self.threads, device=self.device
            )
        variant = folder.variant(self.variant)
        threads = self.threads or cores()
        if BACKENDS[variant.backend].in_sentence_transformers(folder):
            # Imported here, or its torch would count as memory of variants that need none.
            from xopt.runtime.bench.reference import ReferenceScorer

            return ReferenceScorer(folder, variant, threads, batch_size, self.device)
        plan = Plan(callers=1, threads=threads, tokens=1)
        scorer = open_scorer(folder, self.variant, plan=plan, device=self.device)
        return BatchScorer(scorer, batch_size)


def strategy_named(name: str) -> Strategy:
    """Return a strategy. Raises BadInput with the names that exist."""
    if name not in STRATEGIES:
        raise BadInput(f"strategy {name!r}: unknown; one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
