"""Rounding weights to integers so that the products with real inputs change least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["round_weights"]

# Of the mean diagonal: keeps the inverse tame where calibration saw few directions.
DAMPING = 0.01
BLOCK = 128  # rows whose errors are passed on together

Matrix = NDArray[np.float64]


def round_weights(
    weights: Matrix, gram: Matrix, bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round weights to symmetric int8[inputs, outputs] of `bits`, and scales float32[outputs].

    Each row's error is made up for by the rows after it, as far as their inputs go together by
    the `gram` matrix, [inputs, inputs].
    Source: GPTQ, Frantar et al. 2022, arXiv:2210.17323, algorithm 1.
    """
    largest = 2 ** (bits - 1) - 1
    scales = np.maximum(np.abs(weights).max(0), 1e-12) / largest
    damping = max(DAMPING * float(np.diag(gram).mean()), 1e-12)
    damped = gram + np.eye(len(gram)) * damping
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = weights.copy()
    rounded = np.empty_like(weights)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        errors = np.zeros((stop - start, left.shape[1]))
        for row in range(start, stop):
            rounded[row] = np.clip(np.round(left[row] / scales), -largest, largest)
            error = (left[row] - rounded[row] * scales) / upper[row, row]
            left[row + 1 : stop] -= np.outer(upper[row, row + 1 : stop], error)
            errors[row - start] = error
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return rounded.astype(np.int8), scales.astype(np.float32)
