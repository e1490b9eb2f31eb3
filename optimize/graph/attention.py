"""An exact rewrite: attention over pairs without padding in one operator.

onnxruntime's MultiHeadAttention is fastest without a mask: its flash kernel never writes out the scores of all tokens
with all others. A mask is there for padding alone, so each attention becomes an If: where no pair of a forward is
padded, the operator; else the nodes that were there. xopt's planner runs pairs of equal length together, which takes
the first branch always; other programs load the file as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xopt.optimize.graph.shapes import Dim, tensor_shapes
from xopt.optimize.graph.structure import import_microsoft, makers, open_session, outer_reads, readers, rebuilt
from xopt.runtime.scoring.backends.backend import UNPADDED

__all__ = ["fuse_attention", "unfused"]

MASK = "attention_mask"
LENGTHS = (2, 300)  # tokens of the pairs that a mask is asked about: fewer and more than a window of local attention
TURNED, KEYS = [0, 2, 1, 3], [0, 2, 3, 1]  # heads before tokens; and channels before them


@dataclass(frozen=True)
class _Attention:
    """Nodes that make of query, key and value, [pairs, width, channels], the heads' results side by side."""

    inputs: tuple[str, ...]
    mask: str
    heads: int
    scale: float
    nodes: tuple[onnx.NodeProto, ...]  # in the graph's order

    @property
    def output(self) -> str:
        return str(self.nodes[-1].output[0])


class _Graph:
    """Who makes a tensor, who reads it, its shape, and constants. What is not as asked for raises LookupError."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.maker, self.readers = makers(model), readers(model)
        self.place = {node.output[0]: i for i, node in enumerate(model.graph.node)}
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.shapes: dict[str, list[Dim]] = tensor_shapes(model)

    def made(self, name: str, *operators: str) -> onnx.NodeProto:
        """The node that makes a tensor, one of `operators`."""
        node: onnx.NodeProto = self.maker[name]
        if node.op_type not in operators:
            raise LookupError(name)
        return node

    def reader(self, node: onnx.NodeProto, operator: str) -> onnx.NodeProto:
        """The node of type `operator` that alone reads the output of `node`."""
        found = self.readers[node.output[0]]
        if len(found) != 1 or found[0].op_type != operator:
            raise LookupError(node.output[0])
        return found[0]

    def scalar(self, name: str) -> float:
        """A constant of one entry."""
        tensor = self.weights[name] if name in self.weights else self.made(name, "Constant").attribute[0].t
        if math.prod(tensor.dims) != 1:
            raise LookupError(name)
        return float(numpy_helper.to_array(tensor).reshape(()))

    def heads(self, name: str, order: list[int]) -> tuple[onnx.NodeProto, onnx.NodeProto]:
        """The Reshape that cuts [pairs, width, channels] into heads, and the Transpose to `order` behind it."""
        turned = self.made(name, "Transpose")
        if list(turned.attribute[0].ints) != order:
            raise LookupError(name)
        return self.made(turned.input[0], "Reshape"), turned


def fuse_attention(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same function, with a branch for forwards without padding in each attention, and how many there are.

    Outputs are equal but for the order of floating-point sums. Attention with windows, biases of its own or
    another shape than BERT's stays as it is.
    """
    graph = _Graph(model)
    found = [match for node in model.graph.node if node.op_type == "Softmax" and (match := _match(graph, node))]
    found = _only_padding(model, found)
    if not found:
        return model, 0
    by_last = {attention.output: attention for attention in found}
    inside = {node.output[0] for attention in found for node in attention.nodes}
    nodes, shapes = _condition(), []
    for node in model.graph.node:
        name = node.output[0]
        if name in by_last:
            nodes.append(_branches(by_last[name]))
            shape = [None, None, graph.shapes[name][-1]]
            shapes.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        elif name not in inside:
            nodes.append(node)
    made = rebuilt(model, nodes, model.graph.initializer, [*model.graph.value_info, *shapes])
    return import_microsoft(made), len(found)


def unfused(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as it was before `fuse_attention`."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "If" and node.name.startswith(UNPADDED):
            (padded,) = (attribute.g for attribute in node.attribute if attribute.name == "else_branch")
            nodes.extend(_renamed(padded.node, node.output[0]))
        elif not node.name.startswith(UNPADDED):
            nodes.append(node)
    return rebuilt(model, nodes, model.graph.initializer)


def _match(graph: _Graph, softmax: onnx.NodeProto) -> _Attention | None:
    """The attention around a softmax, if it is BERT's."""
    try:
        added = graph.made(softmax.input[0], "Add")
        product, scaled, mask = _scores(graph, added)
        scale = 1.0 if scaled is product else graph.scalar(scaled.input[1])
        second = graph.reader(softmax, "MatMul")
        turned = graph.reader(second, "Transpose")
        joined = graph.reader(turned, "Reshape")
        left, right, values = product.input[0], product.input[1], second.input[1]
        parts = [graph.heads(left, TURNED), graph.heads(right, KEYS), graph.heads(values, TURNED)]
        _, heads, _, size = graph.shapes[left]
        (channels,) = graph.shapes[joined.output[0]][2:]
    except (LookupError, ValueError):
        return None
    if not isinstance(heads, int) or not isinstance(size, int) or heads * size != channels:
        return None
    if list(turned.attribute[0].ints) != TURNED or second.input[0] != softmax.output[0]:
        return None
    nodes = {
        n.output[0]: n for n in (*itertools.chain(*parts), product, scaled, added, softmax, second, turned, joined)
    }
    ordered = tuple(nodes[name] for name in sorted(nodes, key=graph.place.__getitem__))
    if any(reader.output[0] not in nodes for node in ordered[:-1] for reader in graph.readers[node.output[0]]):
        return None
    inputs = tuple(str(reshape.input[0]) for reshape, _ in parts)
    return _Attention(inputs, mask, heads, 1 / scale if scaled.op_type == "Div" else scale, ordered)


def _scores(graph: _Graph, added: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto, str]:
    """The product of query and key, the node that scales it or the product again, and the mask that is added."""
    for scores, mask in (tuple(added.input), tuple(reversed(added.input))):
        scaled = graph.maker.get(scores)
        product = graph.maker.get(scaled.input[0]) if scaled and scaled.op_type in ("Div", "Mul") else scaled
        if scaled and product and product.op_type == "MatMul":
            return product, scaled, mask
    raise LookupError(added.output[0])


def _only_padding(model: onnx.ModelProto, found: Sequence[_Attention]) -> list[_Attention]:
    """The attentions whose mask adds nothing where no pair is padded, by running the mask's part of the graph."""
    masks = sorted({attention.mask for attention in found})
    needed, nodes = set(masks), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= {*node.input, *outer_reads(node)}
    asked = rebuilt(model, reversed(nodes), [tensor for tensor in model.graph.initializer if tensor.name in needed])
    del asked.graph.output[:]
    asked.graph.output.extend(helper.make_tensor_value_info(mask, TensorProto.FLOAT, None) for mask in masks)
    zero = set(masks) if MASK in needed else set()
    for length in LENGTHS if zero else ():
        values = open_session(asked).run(masks, {n.name: np.ones((2, length), np.int64) for n in asked.graph.input})
        zero &= {mask for mask, value in zip(masks, values, strict=True) if not value.any()}
    return [attention for attention in found if attention.mask in zero]


def _condition() -> list[onnx.NodeProto]:
    """Whether no pair of a forward is padded."""
    least = f"{UNPADDED}/least"
    return [
        helper.make_node("ReduceMin", [MASK], [least], least, keepdims=0),
        helper.make_node("Cast", [least], [UNPADDED], UNPADDED, to=TensorProto.BOOL),
    ]


def _branches(attention: _Attention) -> onnx.NodeProto:
    output = attention.output
    fused = helper.make_node(
        "MultiHeadAttention",
        attention.inputs,
        [f"{output}/fused"],
        f"{output}/fused",
        domain="com.microsoft",
        num_heads=attention.heads,
        scale=attention.scale,
    )
    padded = _renamed(attention.nodes, f"{output}/padded")
    branches = {
        name: helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
        )
        for name, nodes in (("then_branch", [fused]), ("else_branch", padded))
    }
    return helper.make_node("If", [UNPADDED], [output], f"{UNPADDED}{output}", **branches)


def _renamed(nodes: Sequence[onnx.NodeProto], output: str) -> list[onnx.NodeProto]:
    """The nodes, the last of which makes the tensor `output`."""
    last = onnx.NodeProto()
    last.CopyFrom(nodes[-1])
    last.output[0] = output
    return [*nodes[:-1], last]
