"""Calibration: what the inputs of a graph's matrix products hold on real pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from xopt.optimize.graph.structure import open_session, rebuilt
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.backends.backend import pad
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.plan import plan_forwards

__all__ = ["Activations", "calibrate", "calibration_pairs"]

log = logging.getLogger(__name__)

TOKENS = 512  # padded tokens a forward
CALIBRATION_PAIRS = 96  # drawn from the data; twice as many gave the same agreement


@dataclass(frozen=True)
class Activations:
    """What a tensor of token rows held: a tensor [pairs, width, channels], padding left out.

    lowest, highest: the least and the largest entry of each channel. low, high: the least and the
    largest entry of a row, medians over tokens. gram: the mean of x x^T over tokens,
    float64[channels, channels], if it was asked for.
    """

    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]
    low: float
    high: float
    gram: NDArray[np.float64]

    @property
    def peak(self) -> NDArray[np.float64]:
        """The largest magnitude of each channel."""
        return np.maximum(-self.lowest, self.highest)


@dataclass
class _Sums:
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]
    gram: NDArray[np.float64]
    tokens: int = 0
    lows: list[NDArray[np.float32]] = field(default_factory=list)
    highs: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, rows: NDArray[np.float32], gram: bool) -> None:
        self.lowest = np.minimum(self.lowest, rows.min(0))
        self.highest = np.maximum(self.highest, rows.max(0))
        if gram:
            self.gram += rows.T @ rows
        self.tokens += len(rows)
        self.lows.append(rows.min(1))
        self.highs.append(rows.max(1))

    def activations(self) -> Activations:
        low, high = (float(np.median(np.concatenate(rows))) for rows in (self.lows, self.highs))
        self.gram /= self.tokens
        return Activations(self.lowest, self.highest, low, high, self.gram)


def calibration_pairs(candidates: Candidates) -> list[Pair]:
    """Pairs drawn from `candidates`, always the same ones."""
    pairs = candidates.pairs
    rows = np.random.default_rng(0).permutation(len(pairs))[:CALIBRATION_PAIRS]
    log.info("calibrating on %d pairs of %s", len(rows), candidates.name)
    return [pairs[row] for row in rows]


def calibrate(
    folder: ModelFolder,
    model: onnx.ModelProto,
    tensors: Sequence[str],
    pairs: Sequence[Pair],
    gram: bool = True,
) -> dict[str, Activations]:
    """Run `model`, the folder's FP32 graph, over `pairs` and describe `tensors` by name."""
    probe = rebuilt(model, model.graph.node, model.graph.initializer)
    del probe.graph.output[:]
    probe.graph.output.extend(
        helper.make_tensor_value_info(t, onnx.TensorProto.FLOAT, None) for t in tensors
    )
    session = open_session(probe)
    inputs = {node.name for node in session.get_inputs()}
    encoder = Encoder(folder)
    tokens = encoder.encode(pairs)
    sums: dict[str, _Sums] = {}
    for forward in plan_forwards(tokens.lengths, TOKENS, encoder.max_length):
        arrays = pad(tokens, forward, encoder.pad_id, left=encoder.left)
        mask = arrays["attention_mask"].astype(bool)
        held = session.run(list(tensors), {k: v for k, v in arrays.items() if k in inputs})
        for name, value in zip(tensors, held, strict=True):
            # What has no row for each token, DeBERTa's relative positions say, is described by
            # all of its rows.
            rows = (
                value[mask] if value.shape[:2] == mask.shape else value.reshape(-1, value.shape[-1])
            )
            if not np.isfinite(rows).all():
                where = _for_pair(value, mask, forward.rows, pairs)
                raise BadInput(
                    f"{folder.path}: {name} is not finite{where}; the weights are damaged"
                )
            if name not in sums:
                channels = rows.shape[1]
                sums[name] = _Sums(
                    np.zeros(channels),
                    np.zeros(channels),
                    np.zeros((channels, channels) if gram else 0),
                )
            sums[name].add(rows, gram)
    return {name: total.activations() for name, total in sums.items()}


def _for_pair(
    value: NDArray[np.float32],
    mask: NDArray[np.bool_],
    rows: NDArray[np.intp],
    pairs: Sequence[Pair],
) -> str:
    """Which pair it is whose tokens' rows are not finite, where `value` has a row for each
    token.
    """
    if value.shape[:2] != mask.shape:
        return ""
    sound = np.isfinite(value).all(axis=-1).reshape(*mask.shape, -1).all(axis=-1) | ~mask
    query, text = pairs[rows[int(np.argmin(sound.all(axis=1)))]]
    return f" for the pair ({query!r:.60}, {text!r:.60})"
