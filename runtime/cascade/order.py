"""Orders: which candidates are scored first, and what the others may score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.features import Evidence

__all__ = [
    "NOISE_SHARE",
    "QUANTILE_LEVELS",
    "QUANTILE_MASSES",
    "ErrorCovariance",
    "Order",
    "Posterior",
]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

LENGTH_SCALE = 1.5  # of the covariance by features, in standard deviations of each
# The part of the variance that is a variant's own error.
# It keeps the covariance of equal documents invertible.
NOISE_SHARE = 1e-3
LEAST_VARIANCE = 0.02  # the share that stays, whatever is scored
# Errors are kept as quantiles at these levels, each of which stands for a mass.
# They are close at the top: among many documents the rare surprise counts.
EDGES = np.concatenate([np.arange(8) / 16, 1 - 2.0 ** -np.arange(1, 13, 0.25), [1.0]])
QUANTILE_LEVELS = (EDGES[1:] + EDGES[:-1]) / 2
QUANTILE_MASSES = np.diff(EDGES)


@dataclass(frozen=True)
class Order:
    """A linear prediction of the reference's logits, and how far it errs.

    kind: "given" is by the first stage, "learned" by texts too, "model" by a cheaper model too.
    with_score: whether the first stage's score is a feature.
    scale: the standard deviation of each feature but the pooled ones.
    variances: of the components of `ErrorCovariance`.
    widths: expected logits, and a factor for the standard deviation there.
    quantiles: of errors in standard deviations, at `QUANTILE_LEVELS`.
    model, variant, sha256: the cheaper model's folder, variant and fingerprint.
    """

    kind: str
    with_score: bool
    weights: Sequence[float]
    bias: float
    scale: Sequence[float]
    variances: Sequence[float]
    widths: Sequence[Sequence[float]]
    quantiles: Sequence[float]
    model: str | None = None
    variant: str | None = None
    sha256: str | None = None

    def predict(self, features: Floats) -> Doubles:
        """Return float64[documents] logits for float32[documents, features]."""
        predicted: Doubles = features.astype(np.float64) @ np.array(self.weights) + self.bias
        return predicted


class ErrorCovariance:
    """The covariance of a query's errors: three components, each of variance 1.

    All documents share the first. The second is a Gaussian of the distance of features.
    The third is by terms in common; without texts each document has its own.
    """

    def __init__(self, evidence: Evidence, scale: Sequence[float]) -> None:
        lengths = LENGTH_SCALE * np.sqrt(len(scale)) * np.array(scale)
        self._features = evidence.features[:, : len(scale)] / lengths
        self._squares = (self._features**2).sum(1)
        self._terms = evidence.terms

    def components(self, rows: NDArray[np.intp]) -> Doubles:
        """Return float64[3, rows, documents]."""
        products = self._features[rows] @ self._features.T
        distances = self._squares[rows, None] + self._squares - 2 * products
        by_features = np.exp(-np.maximum(distances, 0) / 2)
        if self._terms is None:
            places = np.arange(len(self._features))
            by_terms = (rows[:, None] == places).astype(np.float64)
        else:
            by_terms = (self._terms @ self._terms[rows].toarray().T).T
        return np.stack([np.ones_like(by_features, np.float64), by_features, by_terms])


class Posterior:
    """The expected logits of a query's candidates, given those scored so far.

    Errors are taken for a Gaussian process with `ErrorCovariance` (kriging; Rasmussen and
    Williams 2006, chapter 2). If a document is better than expected, so are those like it.

    prior, mean: float64[documents], before and after the scores.
    """

    def __init__(self, order: Order, evidence: Evidence) -> None:
        self.prior = order.predict(evidence.features)
        self.mean = self.prior
        self._variances = np.array(order.variances)
        self._widths = np.array(order.widths)
        self._covariance = ErrorCovariance(evidence, order.scale)
        self._variance_left = np.full(len(self.mean), self._variances.sum())
        # inv(L) @ K and inv(L) @ errors of scored documents, with K = L @ L.T.
        self._whitened = np.empty((0, len(self.mean)))
        self._whitened_errors = np.empty(0)

    @property
    def std(self) -> Doubles:
        """The standard deviations of these logits."""
        total = self._variances.sum()
        left = np.clip(self._variance_left, LEAST_VARIANCE * total, total)
        std: Doubles = np.sqrt(left) * np.interp(self.mean, *self._widths)
        return std

    def observe(self, rows: NDArray[np.intp], scores: Floats) -> None:
        """Add the logits of some documents, as rows of the Cholesky factor."""
        known = self._whitened[:, rows].T
        covariance = np.tensordot(self._variances, self._covariance.components(rows), 1)
        covariance -= known @ self._whitened
        noise = NOISE_SHARE * self._variances.sum() * np.eye(len(rows))
        root = np.linalg.cholesky(covariance[:, rows] + noise)
        errors = scores - self.prior[rows] - known @ self._whitened_errors
        # Not scipy's triangular solver: the threads of its BLAS and numpy's wait for each other.
        solved = np.linalg.inv(root) @ np.concatenate([covariance, errors[:, None]], 1)
        whitened = solved[:, :-1]
        whitened_errors = solved[:, -1]
        self._whitened = np.concatenate([self._whitened, whitened])
        self._whitened_errors = np.concatenate([self._whitened_errors, whitened_errors])
        self.mean = self.mean + whitened_errors @ whitened
        self._variance_left = self._variance_left - (whitened**2).sum(0)
