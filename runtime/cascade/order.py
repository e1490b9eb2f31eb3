"""Orders: which of a query's candidates are scored first, and what is expected of those that are
not scored yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.features import Evidence

__all__ = ["LEVELS", "MASSES", "NOISE", "Belief", "Likeness", "Order"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# standard deviations of a feature, in the root mean square, over which documents cease to be
# alike
REACH = 1.5
# of an error's variance, is of each document alone: a variant's own, and so that copies do no
# harm
NOISE = 1e-3
LEAST = 0.02  # of an error's variance, is left whatever was scored
# An error's distribution is kept as its quantiles at these levels, each of which stands for so
# much of it. They are close at the top: among many documents it is the rare surprise that counts.
EDGES = np.concatenate([np.arange(8) / 16, 1 - 2.0 ** -np.arange(1, 13, 0.25), [1.0]])
LEVELS, MASSES = (EDGES[1:] + EDGES[:-1]) / 2, np.diff(EDGES)


@dataclass(frozen=True)
class Order:
    """Predicts the reference's logits from cheap features, linearly; candidates are scored by
    falling prediction.

    kind: where the features come from: "given", the first stage's order alone; "learned", the
    texts too; "model", a cheaper model's logit too. with_score: whether the first stage's score
    is one of them. weights, bias: of the prediction. scale: how far features spread in a query,
    but for the document's embedding. variances: of the parts of an error, see `Likeness`. widths:
    logits that are expected, and by how much more or less than those variances say documents err
    there. quantiles: of errors in units of all that, at `LEVELS`. model, variant, sha256: the
    folder of the cheaper model, what scores there, and its file's fingerprint.
    """

    kind: str
    with_score: bool
    weights: tuple[float, ...]
    bias: float
    scale: tuple[float, ...]
    variances: tuple[float, float, float]
    widths: tuple[tuple[float, ...], tuple[float, ...]]
    quantiles: tuple[float, ...]
    model: str | None = None
    variant: str | None = None
    sha256: str | None = None

    def predict(self, features: Floats) -> Doubles:
        """float64[documents] logits that are expected, of float32[documents, features]."""
        predicted: Doubles = features.astype(np.float64) @ np.array(self.weights) + self.bias
        return predicted


class Likeness:
    """How much errors of a query's predictions have in common: the three parts of their
    covariance, each of at most 1.

    All of a query share the first; documents with like features the second, which falls with
    their distance as a Gaussian does; documents with terms in common the third, or without texts
    each document has its own.
    """

    def __init__(self, evidence: Evidence, scale: tuple[float, ...]) -> None:
        self._features = evidence.features[:, : len(scale)] / (
            REACH * np.sqrt(len(scale)) * np.array(scale)
        )
        self._squares = (self._features**2).sum(1)
        self._terms = evidence.terms

    def parts(self, rows: NDArray[np.intp]) -> Doubles:
        """float64[3, rows, documents]."""
        distances = (
            self._squares[rows, None] + self._squares - 2 * self._features[rows] @ self._features.T
        )
        alike = np.exp(-np.maximum(distances, 0) / 2)
        if self._terms is None:
            own = (rows[:, None] == np.arange(len(self._features))).astype(np.float64)
        else:
            own = (self._terms @ self._terms[rows].toarray().T).T
        return np.stack([np.ones_like(alike, np.float64), alike, own])


class Belief:
    """What is expected of one query's candidates, as their scores come in.

    The errors of an order's predictions are taken for a Gaussian process (kriging; Rasmussen and
    Williams 2006, chapter 2) with the covariance of `Likeness`. So what has been scored tells
    something of what has not, and where a document of some kind is better than it looked, its
    like come earlier. prior, mean, spread: float64[documents] of the logits, before any score and
    after, those of scored documents too.
    """

    def __init__(self, order: Order, evidence: Evidence) -> None:
        self.prior, self._variances = order.predict(evidence.features), np.array(order.variances)
        self._likeness, self._widths = Likeness(evidence, order.scale), np.array(order.widths)
        self.mean = self.prior
        self._left = np.full(len(self.mean), self._variances.sum())
        self._whitened, self._told = np.empty((0, len(self.mean))), np.empty(0)

    @property
    def spread(self) -> Doubles:
        """Standard deviations."""
        total = self._variances.sum()
        spread: Doubles = np.sqrt(np.clip(self._left, LEAST * total, total))
        spread *= np.interp(self.mean, *self._widths)
        return spread

    def tell(self, rows: NDArray[np.intp], scores: Floats) -> None:
        """The logits of some candidates, by their places: a few more rows of the covariance's
        Cholesky factor.
        """
        known = self._whitened[:, rows].T
        shared = (
            np.tensordot(self._variances, self._likeness.parts(rows), 1) - known @ self._whitened
        )
        root = np.linalg.cholesky(
            shared[:, rows] + NOISE * self._variances.sum() * np.eye(len(rows))
        )
        news = scores - self.prior[rows] - known @ self._told
        # Not scipy's solution of a triangle: its BLAS is not numpy's, and the threads of both
        # wait for each other.
        solved = np.linalg.inv(root) @ np.concatenate([shared, news[:, None]], 1)
        self._whitened = np.concatenate([self._whitened, solved[:, :-1]])
        self._told = np.concatenate([self._told, solved[:, -1]])
        self.mean = self.mean + solved[:, -1] @ solved[:, :-1]
        self._left = self._left - (solved[:, :-1] ** 2).sum(0)
