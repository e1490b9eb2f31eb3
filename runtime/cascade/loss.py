"""What a cascade lost on a query, against the reference's scores of all its candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.cascade import Cascade
from xopt.runtime.data.candidates import Candidates, query_hash
from xopt.runtime.data.quality import gains, rank_weights

__all__ = ["Cascaded", "lost"]


def lost(
    reference: NDArray[np.floating],
    ranking: NDArray[np.intp],
    scored: NDArray[np.bool_],
    top: int,
    measure: str = "dcg",
) -> float:
    """Between 0 and 1. `reference` holds the logits of all candidates, `ranking` their places,
    best first.

    "dcg": the share of DCG@top that the ranking loses against the reference's own, where a
    document's gain is the sigmoid of the reference's logit: no labels are needed, and what the
    reference finds irrelevant weighs nothing. "top": 1 where one of the reference's best `top`
    was not scored, else 0.
    """
    if not len(reference):
        return 0.0
    if measure == "top":
        return float(not scored[np.argsort(-reference, kind="stable")[:top]].all())
    worth, weights = gains(reference), rank_weights(min(top, len(reference)))
    best = float(np.sort(worth)[::-1][:top] @ weights)
    return min(1.0, max(0.0, 1 - float(worth[ranking[:top]] @ weights) / best)) if best else 0.0


@dataclass(frozen=True)
class Cascaded:
    """How many of the pairs a cascade scored, as a share, and what it lost on each query; see
    `lost`.

    `seen` of the queries made the cascade: what was lost on those says little of others.
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
    ) -> Cascaded:
        """Of the reference's scores of all pairs, and the cascade's, NaN where it did not score."""
        own, losses, seen = cascade.certificate, [], 0
        for rows in candidates.groups().values():
            seen += query_hash(candidates.rows[rows.start].query) in own.seen
            ranking = np.argsort(
                np.where(np.isnan(scores[rows]), np.inf, -scores[rows]), kind="stable"
            )
            losses.append(
                lost(reference[rows], ranking, np.isfinite(scores[rows]), own.top, own.measure)
            )
        return Cascaded(float(np.isfinite(scores).mean()), tuple(losses), seen)
