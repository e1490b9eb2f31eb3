"""Orders: which of a query's candidates are scored first, and what is expected of those that are not scored yet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Belief", "Order"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

SHARED, POWER = 0.4, 4  # how much of a prediction's error documents of one kind share, and how fast that falls


@dataclass(frozen=True)
class Order:
    """Predicts the reference's logits from cheap features, linearly; candidates are scored by falling prediction.

    kind: where the features come from: "given", the first stage's order alone; "learned", the texts too; "model", a
    cheaper model's logit too. with_score: whether the first stage's score is one of them. dimensions: how many of the
    last ones are the document's embedding. weights, bias: of the prediction. shift: the standard deviation over queries
    of its mean error; spread: within a query of its other error, with its quantiles, evenly spaced. model, variant,
    sha256: the folder of the cheaper model, what scores there, and its file's fingerprint.
    """

    kind: str
    with_score: bool
    dimensions: int
    weights: tuple[float, ...]
    bias: float
    shift: float
    spread: float
    quantiles: tuple[float, ...]
    model: str | None = None
    variant: str | None = None
    sha256: str | None = None

    def predict(self, features: Floats) -> Doubles:
        """float64[documents] logits that are expected, of float32[documents, features]."""
        predicted: Doubles = features.astype(np.float64) @ np.array(self.weights) + self.bias
        return predicted


class Belief:
    """What is expected of one query's candidates, as their scores come in.

    The errors of an order's predictions are taken for a Gaussian process (kriging; Rasmussen and Williams 2006, chapter
    2): all documents of a query share its shift, and documents whose embeddings are alike a part of the rest. So what
    has been scored tells something of what has not, and where a document of some kind is better than it looked, its
    like come earlier. mean, spread: float64[documents] of the logits, those of scored documents too.
    """

    def __init__(self, order: Order, features: Floats) -> None:
        self.order, count = order, len(features)
        self.prior = order.predict(features)
        self.mean, self.spread = self.prior, np.full(count, order.spread)
        self._kinds = features[:, features.shape[1] - order.dimensions :].astype(np.float64)
        self._rows = np.empty(0, np.intp)
        self._errors, self._shared = np.empty(0), np.empty((count, 0))

    def tell(self, rows: NDArray[np.intp], scores: Floats) -> None:
        """The logits of some candidates, by their places."""
        own = self.order
        like = np.clip(self._kinds @ self._kinds[rows].T, 0, 1) ** POWER
        self._shared = np.concatenate([self._shared, own.shift**2 + SHARED * own.spread**2 * like], 1)
        self._rows = np.concatenate([self._rows, rows])
        self._errors = np.concatenate([self._errors, scores - self.prior[rows]])
        variance = self._shared[self._rows] + ((1 - SHARED) * own.spread**2 + 1e-6) * np.eye(len(self._rows))
        if not own.dimensions:  # then none is alike but to itself
            variance += SHARED * own.spread**2 * np.eye(len(self._rows))
        solved = np.linalg.solve(variance, np.concatenate([self._errors[:, None], self._shared.T], 1))
        self.mean = self.prior + self._shared @ solved[:, 0]
        left = own.shift**2 + own.spread**2 - np.einsum("ij,ji->i", self._shared, solved[:, 1:])
        self.spread = np.sqrt(np.clip(left, 0.02 * own.spread**2, 1.5 * own.spread**2))
