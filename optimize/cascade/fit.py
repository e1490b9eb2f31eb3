"""Fitting an order to the reference's scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from xopt.runtime.cascade.features import Evidence
from xopt.runtime.cascade.order import NOISE_SHARE, QUANTILE_LEVELS, ErrorCovariance, Order

__all__ = ["Query", "fit_order", "folds"]

Doubles = NDArray[np.float64]

RIDGE = 0.1  # times the features' variance
CONSTANT_SCALE = 1e9  # of a feature that does not vary; its weight is 0 then
FOLDS = 4  # an order is tried on queries that it was not fitted on
DOCUMENTS = 100  # of each query, for the covariance
BINS = 20  # of expected logits, for the widths


@dataclass(frozen=True)
class Query:
    """A query's candidates, with the logits of the reference and of the variant."""

    evidence: Evidence
    reference: NDArray[np.floating]
    scores: NDArray[np.floating]


@dataclass(frozen=True)
class _HeldOutErrors:
    """Errors on a query that the regression was not fitted on.

    components: float64[3, documents, documents], see `ErrorCovariance`.
    """

    logits: Doubles
    errors: Doubles
    components: Doubles

    def covariance(self, variances: Doubles) -> Doubles:
        noise: Doubles = NOISE_SHARE * variances.sum() * np.eye(len(self.errors))
        return noise + np.tensordot(variances, self.components, 1)


def folds(queries: Sequence[Query]) -> Iterator[tuple[Sequence[Query], Sequence[Query]]]:
    """Yield queries to fit on and those held out; a single query is both."""
    for fold in range(min(FOLDS, len(queries))):
        others = [query for i, query in enumerate(queries) if i % FOLDS != fold]
        yield others or queries, queries[fold::FOLDS]


def fit_order(queries: Sequence[Query], kind: str, with_score: bool) -> Order:
    """Fit a ridge regression of the reference's logits on features, and how far it errs.

    Errors are those on held-out queries. Their variances have the greatest likelihood
    (Rasmussen and Williams 2006, chapter 5). Widths and quantiles are of each document,
    expected from all others of its query.
    """
    weights, bias, scale = _regression(queries)
    spread = scale[: len(scale) - queries[0].evidence.embedding].tolist()
    errors = []
    for others, held_out in folds(queries):
        fold_weights, fold_bias, _ = _regression(others)
        errors += [_errors(query, fold_weights, fold_bias, spread) for query in held_out]
    variances = _variances(errors)
    left_out = [_leave_one_out(each, variances) for each in errors]
    expected = np.concatenate([logits for logits, _ in left_out])
    misses = np.concatenate([missed for _, missed in left_out])
    places, widths = _widths(expected, misses)
    misses /= np.interp(expected, places, widths)
    quantiles = np.quantile(misses, QUANTILE_LEVELS)
    return Order(
        kind=kind,
        with_score=with_score,
        weights=weights.tolist(),
        bias=bias,
        scale=spread,
        variances=variances.tolist(),
        widths=[places.tolist(), widths.tolist()],
        quantiles=quantiles.tolist(),
    )


def _regression(queries: Sequence[Query]) -> tuple[Doubles, float, Doubles]:
    """Return the weights, the bias, and each feature's standard deviation in a query.

    Weights are fitted without each query's means, since documents are ordered within it.
    """
    features = [query.evidence.features for query in queries]
    logits = [query.reference for query in queries]
    x = np.concatenate([each - each.mean(0) for each in features]).astype(np.float64)
    y = np.concatenate([each - each.mean() for each in logits]).astype(np.float64)
    scale = x.std(0)
    scale[scale < 1e-6] = CONSTANT_SCALE
    x /= scale
    penalty = (RIDGE * len(x) + 1e-9) * np.eye(x.shape[1])
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ y) / scale
    biases = []
    for own_features, own_logits in zip(features, logits, strict=True):
        biases.append(np.mean(own_logits - own_features @ weights))
    return weights, float(np.mean(biases)), scale


def _errors(query: Query, weights: Doubles, bias: float, scale: Sequence[float]) -> _HeldOutErrors:
    rows = np.random.default_rng(0).permutation(len(query.reference))[:DOCUMENTS]
    logits = query.reference[rows].astype(np.float64)
    errors = logits - query.evidence.features[rows] @ weights - bias
    components = ErrorCovariance(query.evidence, scale).components(rows)
    return _HeldOutErrors(logits, errors, components[:, :, rows])


def _variances(errors: Sequence[_HeldOutErrors]) -> Doubles:
    """Return the three variances of the greatest likelihood."""
    variance = max(float(np.mean([np.mean(each.errors**2) for each in errors])), 1e-6)

    def negative_log_likelihood(logs: Doubles) -> tuple[float, Doubles]:
        variances = np.exp(logs)
        total = 0.0
        gradient = np.zeros(len(logs))
        for each in errors:
            covariance = each.covariance(variances)
            inverse = np.linalg.inv(covariance)
            solved = inverse @ each.errors
            total += each.errors @ solved + np.linalg.slogdet(covariance)[1]
            slopes = np.tensordot(each.components, inverse - np.outer(solved, solved), 2)
            noise_slope = NOISE_SHARE * (np.trace(inverse) - solved @ solved)
            gradient += variances * (slopes + noise_slope)
        return total / len(errors), gradient / len(errors)

    found = optimize.minimize(
        negative_log_likelihood,
        np.full(3, math.log(variance / 3)),
        jac=True,
        method="L-BFGS-B",
        bounds=[(math.log(variance) - 10, math.log(variance) + 2)] * 3,
    )
    variances: Doubles = np.exp(found.x)
    return variances


def _leave_one_out(errors: _HeldOutErrors, variances: Doubles) -> tuple[Doubles, Doubles]:
    """Return each logit as the others of its query let expect, and its error.

    Errors are in standard deviations (Rasmussen and Williams 2006, equation 5.12).
    """
    inverse = np.linalg.inv(errors.covariance(variances))
    solved = inverse @ errors.errors
    precision = np.diag(inverse)
    return errors.logits - solved / precision, solved / np.sqrt(precision)


def _widths(expected: Doubles, misses: Doubles) -> tuple[Doubles, Doubles]:
    """Return expected logits and the root mean square of misses there.

    Low logits are surer than high ones.
    """
    bins = np.array_split(np.argsort(expected, kind="stable"), BINS)
    bins = [rows for rows in bins if len(rows)]
    places = np.array([expected[rows].mean() for rows in bins])
    widths = np.array([np.sqrt(np.mean(misses[rows] ** 2)) for rows in bins])
    return places, np.maximum(widths, 1e-3)
