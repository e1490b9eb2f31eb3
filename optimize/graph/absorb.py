"""An exact rewrite: where one token asks, keys and values are never made.

Of the last layer one row is read, so its queries are one a pair, and its keys and values are made
of all tokens, x, for them alone: q (x Wk)^T = (q Wk^T) x^T, and p (x Wv) = (p x) Wv. In that
order the products by weights see a row a pair instead of a row a token. What a key's bias adds is
the same for all tokens, so that softmax leaves nothing of it; p adds up to one, so that a value's
bias is added whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from xopt.optimize.graph.heads import Attention, find_attentions
from xopt.optimize.graph.structure import all_reads, makers, needed_for, readers, rebuilt

__all__ = ["absorb_keys"]

# x, W [channels, heads x size] and bias of x W + bias
Made = tuple[str, NDArray[np.float32], NDArray[np.float32]]


def absorb_keys(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same function with less work, and in how many attentions. Outputs are equal but for the
    order of sums.
    """
    graph = _Graph(model)
    replaced: dict[str, list[onnx.NodeProto]] = {}
    gone: set[str] = set()
    made: dict[str, NDArray[np.float32]] = {}
    for attention in find_attentions(model):
        key, value = (graph.product(name) for name in attention.inputs[1:])
        if attention.rows == 1 and key and value:
            replaced[attention.output] = _absorbed(attention, key, value, made)
            gone |= {node.output[0] for node in attention.nodes}
    if not replaced:
        return model, 0
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += replaced.get(node.output[0], [] if node.output[0] in gone else [node])
    nodes = needed_for(nodes, (output.name for output in model.graph.output))
    read = all_reads(nodes)
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    new = [numpy_helper.from_array(array, name) for name, array in made.items()]
    return rebuilt(model, nodes, [*constants, *new]), len(replaced)


class _Graph:
    """Who makes a tensor and who reads it, and constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.maker, self.readers = makers(model), readers(model)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}

    def constant(self, name: str, rank: int) -> NDArray[np.float32] | None:
        """A constant of that rank, which may have another name; None where a tensor is none."""
        while name in self.maker and self.maker[name].op_type == "Identity":
            name = self.maker[name].input[0]
        known = name in self.weights and len(self.weights[name].dims) == rank
        return numpy_helper.to_array(self.weights[name]) if known else None

    def product(self, name: str) -> Made | None:
        """What a tensor is the product of, where nobody else reads it; None where it is not made
        so.

        MobileBERT, which normalises nothing between its layers, would lose a digit: x has to be
        of one size.
        """
        node, bias = self.maker.get(name), None
        if node is not None and node.op_type == "Add" and len(self.readers[name]) == 1:
            for other, each in (tuple(node.input), tuple(reversed(node.input))):
                if (bias := self.constant(each, 1)) is not None:
                    node = self.maker.get(other)
                    break
        if node is None or node.op_type != "MatMul" or len(self.readers[node.output[0]]) != 1:
            return None
        weight, x = self.constant(node.input[1], 2), self.maker.get(node.input[0])
        if weight is None or x is None or x.op_type != "LayerNormalization":
            return None
        whole = np.broadcast_to(
            np.zeros(1, weight.dtype) if bias is None else bias, weight.shape[1:]
        )
        return node.input[0], weight, whole


def _absorbed(
    attention: Attention, key: Made, value: Made, made: dict[str, NDArray[np.float32]]
) -> list[onnx.NodeProto]:
    """The nodes in place of an attention's; their constants go into `made`."""
    *_, turned, joined = attention.nodes
    start = f"{attention.output}/absorbed"

    def constant(name: str, array: NDArray[np.generic]) -> str:
        made[f"{start}/{name}"] = np.ascontiguousarray(array)
        return f"{start}/{name}"

    def node(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        out.append(
            helper.make_node(operator, inputs, [f"{start}/{name}"], f"{start}/{name}", **attributes)
        )
        return f"{start}/{name}"

    per_head = (-1, attention.heads, attention.size)
    by_key = key[1].reshape(per_head).transpose(1, 2, 0) * key[1].dtype.type(attention.scale)
    by_value = value[1].reshape(per_head).transpose(1, 0, 2)
    row = constant("row", np.array([2], np.int64))

    out = list(attention.queries)
    # [pairs, heads, 1, channels]
    asked = node("MatMul", [out[-1].output[0], constant("by_key", by_key)], "asked")
    flat = node("Squeeze", [asked, row], "flat")
    across = node("Transpose", [key[0]], "across", perm=[0, 2, 1])
    scores = node("Unsqueeze", [node("MatMul", [flat, across], "scores"), row], "scores_row")
    masked = onnx.NodeProto()
    masked.CopyFrom(attention.added)
    masked.input[:] = [
        scores if name == attention.scores else name for name in attention.added.input
    ]
    out += [masked, attention.softmax]
    taken = node(
        "MatMul", [node("Squeeze", [attention.softmax.output[0], row], "shares"), value[0]], "taken"
    )
    heads = node(
        "MatMul",
        [node("Unsqueeze", [taken, row], "taken_row"), constant("by_value", by_value)],
        "heads",
    )
    bias = constant("bias", value[2].reshape(attention.heads, 1, attention.size))
    out.append(helper.make_node("Add", [heads, bias], [turned.input[0]], f"{start}/biased"))
    return [*out, turned, joined]
