"""Calibration: what the inputs of a graph's matrix products hold on real pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from xopt.optimize.graph.structure import open_session, rebuilt
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.progress import progress
from xopt.runtime.scoring.backends.backend import pad
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.plan import plan_forwards

__all__ = ["Activations", "calibrate", "calibration_pairs"]

log = logging.getLogger(__name__)

FORWARD_TOKENS = 512  # padding included
CALIBRATION_PAIRS = 96  # drawn from the data; twice as many gave the same agreement


@dataclass(frozen=True)
class Activations:
    """What a tensor [pairs, tokens, channels] held, padding left out.

    `lowest`, `highest`: the extremes of each channel, 0 included.
    `low`, `high`: the extremes of a token's row, medians over tokens.
    `gram`: the mean of x x^T over tokens, [channels, channels]; empty if not asked for.
    """

    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]
    low: float
    high: float
    gram: NDArray[np.float64]

    @property
    def peak(self) -> NDArray[np.float64]:
        return np.maximum(-self.lowest, self.highest)


class _Sums:
    def __init__(self, channels: int, gram: bool) -> None:
        self.lowest = np.zeros(channels)
        self.highest = np.zeros(channels)
        self.gram = np.zeros((channels, channels) if gram else 0)
        self.tokens = 0
        self.lows: list[NDArray[np.float32]] = []
        self.highs: list[NDArray[np.float32]] = []

    def add(self, rows: NDArray[np.float32]) -> None:
        self.lowest = np.minimum(self.lowest, rows.min(0))
        self.highest = np.maximum(self.highest, rows.max(0))
        if self.gram.size:
            self.gram += rows.T @ rows
        self.tokens += len(rows)
        self.lows.append(rows.min(1))
        self.highs.append(rows.max(1))

    def activations(self) -> Activations:
        low = float(np.median(np.concatenate(self.lows)))
        high = float(np.median(np.concatenate(self.highs)))
        self.gram /= self.tokens
        return Activations(self.lowest, self.highest, low, high, self.gram)


def calibration_pairs(candidates: Candidates) -> list[Pair]:
    """Draw pairs from `candidates`, always the same ones."""
    pairs = candidates.pairs
    rows = np.random.default_rng(0).permutation(len(pairs))[:CALIBRATION_PAIRS]
    log.info("calibrating on %d pairs of %s", len(rows), candidates.name)
    return [pairs[row] for row in rows]


def calibrate(
    folder: ModelFolder,
    model: ModelProto,
    tensors: Sequence[str],
    pairs: Sequence[Pair],
    gram: bool = True,
) -> dict[str, Activations]:
    """Run `model`, the folder's FP32 graph, over `pairs` and describe `tensors` by name.

    Raises BadInput where a tensor is not finite.
    """
    session = open_session(rebuilt(model, model.graph.node, outputs=tensors))
    inputs = {node.name for node in session.get_inputs()}
    encoder = Encoder(folder)
    tokens = encoder.encode(pairs)
    sums: dict[str, _Sums] = {}
    work = int(tokens.lengths.sum())
    with progress("calibrating", len(pairs), "pairs", work=work) as step:
        for forward in plan_forwards(tokens.lengths, FORWARD_TOKENS, encoder.max_length):
            arrays = pad(tokens, forward, encoder.pad_id, left=encoder.left)
            mask = arrays["attention_mask"].astype(bool)
            read = {name: array for name, array in arrays.items() if name in inputs}
            values = session.run(list(tensors), read)
            for name, value in zip(tensors, values, strict=True):
                rows = _token_rows(value, mask)
                if not np.isfinite(rows).all():
                    pair = _pair_not_finite(value, mask, forward.rows, pairs)
                    raise BadInput(
                        f"{folder.path}: {name} is not finite{pair}; the weights are damaged"
                    )
                if name not in sums:
                    sums[name] = _Sums(rows.shape[1], gram)
                sums[name].add(rows)
            step.advance(len(forward.rows), int(mask.sum()))
    return {name: total.activations() for name, total in sums.items()}


def _token_rows(value: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    if value.shape[:2] == mask.shape:
        return value[mask]
    # Not of tokens, but of DeBERTa's relative positions, say: all rows count.
    return value.reshape(-1, value.shape[-1])


def _pair_not_finite(
    value: NDArray[np.float32],
    mask: NDArray[np.bool_],
    forward_rows: NDArray[np.intp],
    pairs: Sequence[Pair],
) -> str:
    """Name the first pair whose rows are not finite, where rows are of tokens."""
    if value.shape[:2] != mask.shape:
        return ""
    finite = np.isfinite(value).reshape(*mask.shape, -1).all(axis=-1) | ~mask
    first = int(np.argmin(finite.all(axis=1)))
    query, text = pairs[forward_rows[first]]
    return f" for the pair ({query!r:.60}, {text!r:.60})"
