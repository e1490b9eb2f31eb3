"""Fitting an order to the reference's scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from xopt.runtime.cascade.features import Evidence
from xopt.runtime.cascade.order import LEVELS, NOISE, Likeness, Order

__all__ = ["Query", "fit_order", "folds"]

Doubles = NDArray[np.float64]

RIDGE = 0.1  # of the features' variance
FAR = 1e9  # how far a feature that does not spread is taken to
FOLDS = 4  # an order is tried on queries that it was not fitted on
DOCUMENTS = 100  # of a query, by whose errors it is fitted what errors have in common
BINS = 20  # of predictions, in each of which it is fitted how far they err


@dataclass(frozen=True)
class Query:
    """A query's candidates in the first stage's order: evidence, and logits of the reference and
    of the variant.
    """

    evidence: Evidence
    reference: NDArray[np.floating]
    scores: NDArray[np.floating]


@dataclass(frozen=True)
class _Errors:
    """Of some documents of a query: logits, what a regression without that query missed, and
    `Likeness` of those.
    """

    logits: Doubles
    errors: Doubles
    parts: Doubles

    def covariance(self, variances: Doubles) -> Doubles:
        noise: Doubles = NOISE * variances.sum() * np.eye(len(self.errors))
        return noise + np.tensordot(variances, self.parts, 1)


def folds(queries: Sequence[Query]) -> Iterator[tuple[Sequence[Query], Sequence[Query]]]:
    """All queries but some of them, and those; a query that is alone, with itself."""
    for fold in range(min(FOLDS, len(queries))):
        others = [query for number, query in enumerate(queries) if number % FOLDS != fold]
        yield others or queries, queries[fold::FOLDS]


def fit_order(queries: Sequence[Query], kind: str, with_score: bool) -> Order:
    """Ridge regression of the reference's logits on features, and what its errors are like.

    The errors are of queries that a regression was not fitted on. The variances are those of the
    greatest likelihood (Rasmussen and Williams 2006, chapter 5); widths and quantiles are of what
    a document's logit is, against what all others of its query let expect.
    """
    weights, bias, scale = _regression(queries)
    spread = tuple(scale[: len(scale) - queries[0].evidence.embedding].tolist())
    errors = []
    for others, held in folds(queries):
        own_weights, own_bias, _ = _regression(others)
        errors += [_errors(query, own_weights, own_bias, spread) for query in held]
    variances = _variances(errors)
    left_out = [_left_out(each, variances) for each in errors]
    expected, misses = (np.concatenate(values) for values in zip(*left_out, strict=True))
    places, widths = _widths(expected, misses)
    quantiles = np.quantile(misses / np.interp(expected, places, widths), LEVELS)
    return Order(
        kind=kind,
        with_score=with_score,
        weights=tuple(weights.tolist()),
        bias=bias,
        scale=spread,
        variances=tuple(variances.tolist()),
        widths=(tuple(places.tolist()), tuple(widths.tolist())),
        quantiles=tuple(quantiles.tolist()),
    )


def _regression(queries: Sequence[Query]) -> tuple[Doubles, float, Doubles]:
    """Weights, bias, and how far each feature spreads in a query.

    Features and logits less their means in a query, since it is there that documents are ordered;
    what is left of the means is the bias.
    """
    x = np.concatenate([q.evidence.features - q.evidence.features.mean(0) for q in queries]).astype(
        np.float64
    )
    scale = x.std(0)
    scale[scale < 1e-6] = FAR  # of a constant there is nothing to learn
    x /= scale
    y = np.concatenate([q.reference - q.reference.mean() for q in queries]).astype(np.float64)
    weights = (
        np.linalg.solve(x.T @ x + (RIDGE * len(x) + 1e-9) * np.eye(x.shape[1]), x.T @ y) / scale
    )
    return (
        weights,
        float(np.mean([np.mean(q.reference - q.evidence.features @ weights) for q in queries])),
        scale,
    )


def _errors(query: Query, weights: Doubles, bias: float, scale: tuple[float, ...]) -> _Errors:
    some = np.random.default_rng(0).permutation(len(query.reference))[:DOCUMENTS]
    logits = query.reference[some].astype(np.float64)
    errors = logits - query.evidence.features[some] @ weights - bias
    return _Errors(logits, errors, Likeness(query.evidence, scale).parts(some)[:, :, some])


def _variances(errors: Sequence[_Errors]) -> Doubles:
    """Of each part of the covariance, the one of the greatest likelihood."""
    mean = max(float(np.mean([np.mean(each.errors**2) for each in errors])), 1e-6)

    def unlikely(logs: Doubles) -> tuple[float, Doubles]:
        variances, total, slope = np.exp(logs), 0.0, np.zeros(len(logs))
        for each in errors:
            covariance = each.covariance(variances)
            inverse = np.linalg.inv(covariance)
            solved = inverse @ each.errors
            total += each.errors @ solved + np.linalg.slogdet(covariance)[1]
            change = np.tensordot(each.parts, inverse - np.outer(solved, solved), 2)
            slope += variances * (change + NOISE * (np.trace(inverse) - solved @ solved))
        return total / len(errors), slope / len(errors)

    bounds = [(math.log(mean) - 10, math.log(mean) + 2)] * 3
    found = optimize.minimize(
        unlikely, np.full(3, math.log(mean / 3)), jac=True, method="L-BFGS-B", bounds=bounds
    )
    variances: Doubles = np.exp(found.x)
    return variances


def _left_out(errors: _Errors, variances: Doubles) -> tuple[Doubles, Doubles]:
    """Of each document: the logit expected by all others of its query, and its miss in standard
    deviations.
    """
    inverse = np.linalg.inv(errors.covariance(variances))
    missed, precision = inverse @ errors.errors, np.diag(inverse)
    return errors.logits - missed / precision, missed / np.sqrt(precision)


def _widths(expected: Doubles, misses: Doubles) -> tuple[Doubles, Doubles]:
    """By what was expected, how far logits spread around it: low ones are foreseen more surely
    than high ones.
    """
    bins = [some for some in np.array_split(np.argsort(expected, kind="stable"), BINS) if len(some)]
    widths = np.array([np.sqrt(np.mean(misses[some] ** 2)) for some in bins])
    return np.array([expected[some].mean() for some in bins]), np.maximum(widths, 1e-3)
