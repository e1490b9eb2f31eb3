"""Strategies: how Daft calls a scorer, and which scorer it calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import cores
from xopt.runtime.scoring.scorer import BatchScorer, Scorer, open_scorer

__all__ = ["PLANNED_ROWS", "STRATEGIES", "ScorerSpec", "Strategy"]


# Many forwards long: the window within which pairs are sorted by length. A GPU needs more of them to be kept busy.
PLANNED_ROWS = {"cpu": 1024, "cuda": 16384}
# What sentence-transformers does not run here: it packs nothing, and optimum-intel, for OpenVINO, bars optimum-onnx.
OURS = ("openvino", "torch-varlen")


@dataclass(frozen=True)
class Strategy:
    """How Daft calls a scorer.

    rows_a_call: rows that Daft gives the UDF at once, None for all that it has. batch_size: pairs
    that sentence-transformers pads together; None for xopt's planned forwards. workers: processes,
    each with its own model (Daft's max_concurrency); None for one instance within Daft's process.
    """

    name: str
    rows_a_call: int | None
    batch_size: int | None
    workers: int | None = None

    def rows_on(self, device: str) -> int | None:
        """Rows a call on a device: planned forwards want many, a GPU more."""
        return PLANNED_ROWS[device] if self.batch_size is None else self.rows_a_call


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("row", rows_a_call=1, batch_size=1),
        Strategy("default", rows_a_call=None, batch_size=32),
        Strategy("batch", rows_a_call=64, batch_size=64),
        Strategy("concurrent", rows_a_call=64, batch_size=64, workers=4),
        Strategy("planned", rows_a_call=None, batch_size=None),
    )
}


@dataclass(frozen=True)
class ScorerSpec:
    """What a worker needs to open a scorer: a picklable value. `threads` None is all cores of the worker's machine."""

    folder: str
    variant: str
    strategy: str
    threads: int | None
    device: str = "cpu"
    plan: Plan | None = None
    trusted: bool = False

    def open(self) -> Scorer:
        """Open the scorer that the strategy calls. Raises BadInput; see `open_scorer`."""
        strategy, model = STRATEGIES[self.strategy], ModelFolder.open(Path(self.folder), self.trusted)
        if strategy.batch_size is None:
            return open_scorer(model, self.variant, plan=self.plan, threads=self.threads, device=self.device)
        variant, threads = model.variant(self.variant), self.threads or cores()
        if variant.backend in OURS:
            plan = Plan(callers=1, threads=threads, tokens=1)
            return BatchScorer(open_scorer(model, self.variant, plan=plan, device=self.device), strategy.batch_size)
        from xopt.runtime.bench.reference import ReferenceScorer

        return ReferenceScorer(model, variant, threads, strategy.batch_size, self.device)


def strategy_named(name: str) -> Strategy:
    """The strategy of this name. Raises BadInput with the names there are."""
    if name not in STRATEGIES:
        raise BadInput(f"strategy {name!r}: unknown; one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
