"""Attentions whose scores lie so near to zero that their softmax needs no maximum.

A softmax divides exponentials by their sum. It first takes each row's largest score from all of
them, lest they overflow, which costs passes over the scores of all tokens with all others. Where
calibration finds the largest of every row within `NEAR` of zero, float's range has room for all,
and a backend may leave out those passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from xopt.optimize.graph.heads import LENGTHS, Attention, find_attentions, run_masks
from xopt.optimize.graph.structure import rebuilt
from xopt.optimize.int8.calibrate import calibrate
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.backends.backend import NARROW, NEAR
from xopt.runtime.scoring.encode import Pair

__all__ = ["mark_narrow"]

LAST = "/narrow/last"  # the name of a constant, an axis


def mark_narrow(
    folder: ModelFolder, model: onnx.ModelProto, pairs: Sequence[Pair]
) -> tuple[onnx.ModelProto, int]:
    """The same graph, in which the names of such softmaxes start with `NARROW`, and how many they
    are.

    Their masks are the same for all heads and queries. `model` is the folder's FP32 graph, run on
    `pairs`.
    """
    found = _hiding_keys(
        model, [attention for attention in find_attentions(model) if attention.rows != 1]
    )
    if not found:
        return model, 0
    # [pairs, width, heads]
    peaks = {f"{attention.softmax.name}/peaks": attention.softmax for attention in found}
    probes = []
    for peak, node in peaks.items():
        probes.append(
            helper.make_node("ReduceMax", [node.input[0], LAST], [f"{peak}/turned"], keepdims=0)
        )
        probes.append(helper.make_node("Transpose", [f"{peak}/turned"], [peak], perm=[0, 2, 1]))
    last = numpy_helper.from_array(np.array([-1]), LAST)
    probe = rebuilt(model, [*model.graph.node, *probes], [*model.graph.initializer, last])
    seen = calibrate(folder, probe, list(peaks), pairs, gram=False)
    narrow = {node.output[0] for peak, node in peaks.items() if seen[peak].peak.max() <= NEAR}
    nodes = []
    for node in model.graph.node:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        if node.output[0] in narrow:
            new.name = f"{NARROW}{node.name}"
        nodes.append(new)
    return rebuilt(model, nodes, model.graph.initializer, model.graph.value_info), len(narrow)


def _hiding_keys(model: onnx.ModelProto, found: Sequence[Attention]) -> list[Attention]:
    """The attentions whose mask is the same for all heads and queries, [pairs, 1, 1 or width,
    width].
    """
    halves = (np.arange(length) < [[length], [length // 2]] for length in LENGTHS)
    asked = list(run_masks(model, found, (half.astype(np.int64) for half in halves)))
    return [
        each for each in found if asked and all(_one_row(values[each.mask]) for values in asked)
    ]


def _one_row(mask: NDArray[np.float32]) -> bool:
    return mask.ndim == 4 and mask.shape[1] == 1 and bool((mask == mask[:, :, :1]).all())
