"""Finding attention in a graph, where it has BERT's shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from xopt.optimize.graph.shapes import Dim, tensor_shapes
from xopt.optimize.graph.structure import (
    all_reads,
    makers,
    needed_for,
    open_session,
    readers,
    rebuilt,
)

__all__ = ["LENGTHS", "MASK", "Attention", "find_attentions", "run_masks"]

MASK = "attention_mask"
# tokens of the pairs that a mask is asked about: fewer and more than a window of local attention
LENGTHS = (2, 300)
TURNED, KEYS = [0, 2, 1, 3], [0, 2, 3, 1]  # heads before tokens; and channels before them


@dataclass(frozen=True)
class Attention:
    """Nodes that make of query, key and value, [pairs, width, channels], the heads' results side
    by side.

    `size`: a head's channels. `rows`: the query's width where it is known. `added` adds `mask` to
    `scores`, [pairs, heads, rows, width]; `softmax` follows, and `second` is the product of what
    comes of it with the values.
    """

    inputs: tuple[str, str, str]
    rows: Dim
    mask: str
    heads: int
    size: int
    scale: float
    scores: str
    # the Reshape and the Transpose that make heads of them
    queries: tuple[onnx.NodeProto, onnx.NodeProto]
    added: onnx.NodeProto
    softmax: onnx.NodeProto
    second: onnx.NodeProto
    nodes: tuple[onnx.NodeProto, ...]  # in the graph's order

    @property
    def output(self) -> str:
        """The heads' results, [pairs, rows, channels]."""
        return str(self.nodes[-1].output[0])


def find_attentions(model: onnx.ModelProto) -> list[Attention]:
    """All of them, in the graph's order. Attention with biases of its own or turned queries is
    not among them.
    """
    graph = _Graph(model)
    return [
        match
        for node in model.graph.node
        if node.op_type == "Softmax" and (match := _match(graph, node))
    ]


def run_masks(
    model: onnx.ModelProto, found: Sequence[Attention], masks: Iterable[NDArray[np.int64]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """What attentions add to their scores, by name of the mask, for each attention mask,
    int64[pairs, width].

    Only the part of the graph is run that makes it; nothing comes of one that does not read the
    attention mask.
    """
    names = sorted({attention.mask for attention in found})
    nodes = needed_for(model.graph.node, names)
    read = all_reads(nodes).union(names)
    if MASK not in read:
        return
    asked = rebuilt(
        model, nodes, [tensor for tensor in model.graph.initializer if tensor.name in read]
    )
    del asked.graph.output[:]
    asked.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = open_session(asked)
    for mask in masks:
        held = {
            node.name: mask if node.name == MASK else np.ones_like(mask)
            for node in asked.graph.input
        }
        yield dict(zip(names, session.run(names, held), strict=True))


class _Graph:
    """Who makes a tensor, who reads it, its shape, and constants. What is not as asked for raises
    LookupError.
    """

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
        tensor = (
            self.weights[name]
            if name in self.weights
            else self.made(name, "Constant").attribute[0].t
        )
        if math.prod(tensor.dims) != 1:
            raise LookupError(name)
        return float(numpy_helper.to_array(tensor).reshape(()))

    def heads(self, name: str, order: list[int]) -> tuple[onnx.NodeProto, onnx.NodeProto]:
        """The Reshape that cuts [pairs, width, channels] into heads, and the Transpose to `order`
        behind it.
        """
        turned = self.made(name, "Transpose")
        if list(turned.attribute[0].ints) != order:
            raise LookupError(name)
        return self.made(turned.input[0], "Reshape"), turned


def _match(graph: _Graph, softmax: onnx.NodeProto) -> Attention | None:
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
        _, heads, rows, size = graph.shapes[left]
        (channels,) = graph.shapes[joined.output[0]][2:]
    except (LookupError, ValueError):
        return None
    if not isinstance(heads, int) or not isinstance(size, int) or heads * size != channels:
        return None
    if list(turned.attribute[0].ints) != TURNED or second.input[0] != softmax.output[0]:
        return None
    nodes = {
        n.output[0]: n
        for n in (*itertools.chain(*parts), product, scaled, added, softmax, second, turned, joined)
    }
    ordered = tuple(nodes[name] for name in sorted(nodes, key=graph.place.__getitem__))
    if any(
        reader.output[0] not in nodes
        for node in ordered[:-1]
        for reader in graph.readers[node.output[0]]
    ):
        return None
    query, key, value = (str(reshape.input[0]) for reshape, _ in parts)
    scale = 1 / scale if scaled.op_type == "Div" else scale
    return Attention(
        inputs=(query, key, value),
        rows=rows,
        mask=mask,
        heads=heads,
        size=size,
        scale=scale,
        scores=scaled.output[0],
        queries=parts[0],
        added=added,
        softmax=softmax,
        second=second,
        nodes=ordered,
    )


def _scores(graph: _Graph, added: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.NodeProto, str]:
    """The product of query and key, the node that scales it or the product again, and the mask
    that is added.
    """
    for scores, mask in (tuple(added.input), tuple(reversed(added.input))):
        scaled = graph.maker.get(scores)
        product = (
            graph.maker.get(scaled.input[0])
            if scaled and scaled.op_type in ("Div", "Mul")
            else scaled
        )
        if scaled and product and product.op_type == "MatMul":
            return product, scaled, mask
    raise LookupError(added.output[0])
