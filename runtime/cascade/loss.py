"""Losses of cascades, against the reference's scores of all candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.cascade import Cascade
from xopt.runtime.data.candidates import Candidates, query_hash
from xopt.runtime.data.quality import gains, rank_weights

__all__ = ["CascadeLosses", "ranking_loss"]


def ranking_loss(
    reference: NDArray[np.floating],
    ranking: NDArray[np.intp],
    scored: NDArray[np.bool_],
    top: int,
    measure: str = "dcg",
) -> float:
    """Return the loss of a query's ranking, between 0 and 1.

    "dcg": the share of the reference's DCG@top that is lost. No labels are needed: a gain is
    the sigmoid of the reference's logit.
    "top": 1 if one of the reference's best `top` is not `scored`, else 0.
    """
    if not len(reference):
        return 0.0
    if measure == "top":
        best = np.argsort(-reference, kind="stable")[:top]
        return float(not scored[best].all())
    gain = gains(reference)
    weights = rank_weights(min(top, len(reference)))
    best_dcg = float(np.sort(gain)[::-1][:top] @ weights)
    if not best_dcg:
        return 0.0
    dcg = float(gain[ranking[:top]] @ weights)
    return min(1.0, max(0.0, 1 - dcg / best_dcg))


@dataclass(frozen=True)
class CascadeLosses:
    """The share of pairs that a cascade scored, and its loss on each query.

    seen: how many of the queries made the cascade.
    """

    share: float
    losses: tuple[float, ...]
    seen: int

    @staticmethod
    def of(
        cascade: Cascade,
        candidates: Candidates,
        reference: NDArray[np.float32],
        scores: NDArray[np.float32],
    ) -> CascadeLosses:
        """Compare a cascade's scores, NaN if not scored, with the reference's."""
        own = cascade.certificate
        scored = np.isfinite(scores)
        losses = []
        seen = 0
        for rows in candidates.groups().values():
            seen += query_hash(candidates.rows[rows.start].query) in own.seen
            ranking = np.argsort(-scores[rows], kind="stable")  # NaN last
            losses.append(
                ranking_loss(reference[rows], ranking, scored[rows], own.top, own.measure)
            )
        return CascadeLosses(float(scored.mean()), tuple(losses), seen)
