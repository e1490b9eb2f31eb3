"""An exact rewrite: GELU in the order in which runtimes know it.

torch's exporter writes x * (0.5 * (1 + erf(x / sqrt 2))). onnxruntime fuses
(x * (1 + erf(x / sqrt 2))) * 0.5 into one operator. Halving is exact, so both give the same.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from xopt.optimize.graph.structure import GraphIndex

__all__ = ["reorder_gelu"]


def reorder_gelu(model: ModelProto) -> tuple[ModelProto, int]:
    """Reorder the GELUs of `model` in place, and count them."""
    index = GraphIndex(model)
    count = 0
    for erf in model.graph.node:
        if erf.op_type != "Erf":
            continue
        try:
            plus_one = index.only_consumer(erf, "Add")
            halved = index.only_consumer(plus_one, "Mul")
            product = index.only_consumer(halved, "Mul")
            (half,) = (name for name in halved.input if _is_half(index, name))
            (x,) = set(product.input) - {halved.output[0]}
        except (LookupError, ValueError):  # another activation around an error function
            continue
        if x == index.producers[erf.input[0]].input[0]:
            halved.input[:] = [x, plus_one.output[0]]
            product.input[:] = [halved.output[0], half]
            count += 1
    return model, count


def _is_half(index: GraphIndex, name: str) -> bool:
    if not index.is_constant(name):
        return False
    value = index.constant(name)
    return value.ndim == 0 and value.dtype == np.float32 and bool(value == 0.5)
