"""Profiles a variant's forwards by kind of operation, with the runtimes' own profilers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.scorer import open_scorer

__all__ = ["Profile", "profile"]


@dataclass(frozen=True)
class Profile:
    """Seconds of one caller by kind of operation, largest first."""

    seconds: dict[str, float]
    padded_tokens: int
    threads: int

    @property
    def shares(self) -> dict[str, float]:
        total = sum(self.seconds.values())
        return {kind: seconds / total for kind, seconds in self.seconds.items()}


def profile(folder: ModelFolder, variant: str, plan: Plan, pairs: Sequence[Pair]) -> Profile | None:
    """Profile one caller of a plan on `pairs`; None where the runtime has no profiler.

    Raises BadInput where the variant does not open; see `open_scorer`.
    """
    scorer = open_scorer(folder, variant, plan=replace(plan, callers=1))
    tokens = scorer.encoder.encode(list(pairs))
    forwards = scorer.planned(tokens.lengths)
    batches = [scorer.backend.load(tokens, forward) for forward in forwards]
    seconds = scorer.backend.profiled(batches)
    if not seconds:
        return None
    largest_first = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    padded_tokens = sum(len(forward.rows) * forward.width for forward in forwards)
    return Profile(largest_first, padded_tokens, plan.threads)
