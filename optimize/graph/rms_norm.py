"""An exact rewrite: root-mean-square norms in the form in which onnxruntime knows them.

torch's exporter writes x * (1 / sqrt(mean(x^2) + epsilon)). onnxruntime fuses
x / sqrt(mean(x^2) + epsilon) into one operator. Both are the same but for rounding.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from xopt.optimize.graph.structure import GraphIndex

__all__ = ["divide_by_root"]


def divide_by_root(model: ModelProto) -> tuple[ModelProto, int]:
    """Let the norms of `model` divide, in place, and count them."""
    index = GraphIndex(model)
    kept: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        try:
            if node.op_type == "Reciprocal":
                _let_divide(index, node)
                count += 1
                continue
        except (LookupError, ValueError):  # another root, or not of a norm
            pass
        kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model, count


def _let_divide(index: GraphIndex, reciprocal: NodeProto) -> None:
    """Make a division of the product that reads a norm's reciprocal.

    Raises LookupError or ValueError where it belongs to no norm.
    """
    root = index.producer(reciprocal.input[0], "Sqrt")
    product = index.only_consumer(reciprocal, "Mul")
    (x,) = set(product.input) - {reciprocal.output[0]}
    shifted = index.producer(root.input[0], "Add")
    (mean,) = (name for name in shifted.input if not index.is_constant(name))
    square = index.producer(index.producer(mean, "ReduceMean").input[0], "Pow")
    if square.input[0] != x:
        raise LookupError(x)
    product.op_type = "Div"
    product.input[:] = [x, root.output[0]]
