"""An exact rewrite: GELU in the order in which runtimes know it.

torch's exporter writes x * (0.5 * (1 + erf(x / sqrt 2))); onnxruntime joins (x * (1 + erf(x /
sqrt 2))) * 0.5 into one operator. Halving is exact, so both give the same numbers.
"""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from xopt.optimize.graph.structure import makers, readers

__all__ = ["reorder_gelu"]


def reorder_gelu(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same function, changed in place, and how many activations were reordered."""
    maker, read_by = makers(model), readers(model)
    halves = {
        tensor.name
        for tensor in model.graph.initializer
        if not tensor.dims
        and tensor.data_type == onnx.TensorProto.FLOAT
        and numpy_helper.to_array(tensor) == 0.5
    }
    count = 0
    for erf in [node for node in model.graph.node if node.op_type == "Erf"]:
        try:
            plus = _only(read_by[erf.output[0]], "Add")
            halved = _only(read_by[plus.output[0]], "Mul")
            product = _only(read_by[halved.output[0]], "Mul")
            (half,) = set(halved.input) & halves
            (x,) = set(product.input) - {halved.output[0]}
        except ValueError:  # another activation around an error function
            continue
        if x == maker[erf.input[0]].input[0]:
            halved.input[:], product.input[:] = [x, plus.output[0]], [halved.output[0], half]
            count += 1
    return model, count


def _only(nodes: list[onnx.NodeProto], operator: str) -> onnx.NodeProto:
    """The one reader, of type `operator`; ValueError where there is another or none."""
    (node,) = nodes
    if node.op_type != operator:
        raise ValueError(node.op_type)
    return node
