"""Where the time of a variant's forwards goes, by kind of operation, as the runtimes' own
profilers tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.scoring.encode import Pair
from xopt.runtime.scoring.scorer import open_scorer

__all__ = ["Profile", "profile"]


@dataclass(frozen=True)
class Profile:
    """Seconds of one caller's forwards by kind of operation, the most first; their padded tokens,
    and its threads.
    """

    seconds: dict[str, float]
    padded_tokens: int
    threads: int

    @property
    def shares(self) -> dict[str, float]:
        """The kinds' shares of the time."""
        total = sum(self.seconds.values())
        return {kind: seconds / total for kind, seconds in self.seconds.items()}


def profile(folder: ModelFolder, variant: str, plan: Plan, pairs: Sequence[Pair]) -> Profile | None:
    """Profile one caller of a plan on `pairs`, alone; None of a runtime without a profiler.

    Raises BadInput where the variant does not open; see `open_scorer`.
    """
    scorer = open_scorer(folder, variant, plan=replace(plan, callers=1))
    tokens = scorer.encoder.encode(list(pairs))
    forwards = scorer.planned(tokens.lengths)
    seconds = scorer.backend.profiled(
        [scorer.backend.load(tokens, forward) for forward in forwards]
    )
    padded = sum(len(forward.rows) * forward.width for forward in forwards)
    return (
        Profile(dict(sorted(seconds.items(), key=lambda item: -item[1])), padded, plan.threads)
        if seconds
        else None
    )
