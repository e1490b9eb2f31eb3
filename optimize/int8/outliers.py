"""An exact rewrite: the outlier neurons of a feed-forward block get products of their own.

A few neurons reach values many times those of the rest; a scale that covers them leaves few steps
for the others. Neurons may stand in any order, so the block is cut into two parts whose results are
added. Each part has its columns of the first weight matrix and its rows of the second. In floating
point that is the same sum; in INT8 each part has a scale.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from xopt.optimize.graph.one_row import ELEMENTWISE
from xopt.optimize.graph.structure import GraphIndex, GraphWriter, copied, rebuilt

__all__ = ["FeedForward", "find_blocks", "split_outliers", "whole_name"]

STEP = 16  # the hot part is a multiple of this: the width of a vector register
HOT = "/hot"  # behind the names of a part's nodes and tensors
COLD = "/cold"


@dataclass(frozen=True)
class FeedForward:
    """The nodes from a block's first product to the activation, and its second product."""

    first: tuple[NodeProto, ...]
    second: NodeProto

    @property
    def activation(self) -> str:
        """The tensor between the products: one channel a neuron."""
        return str(self.second.input[0])


def whole_name(name: str) -> str:
    """The name that a node or tensor of a part had before the split."""
    return name.removesuffix(HOT).removesuffix(COLD)


def find_blocks(model: ModelProto, products: Collection[str]) -> list[FeedForward]:
    """Find pairs of the named products with only elementwise operators between them."""
    index = GraphIndex(model)
    blocks = []
    for second in model.graph.node:
        if second.name not in products:
            continue
        names = _names_before(index, second, products)
        first = tuple(node for node in model.graph.node if node.name in names)
        consumers = itertools.chain(*(index.consumers[node.output[0]] for node in first))
        if first and all(node.name in names | {second.name} for node in consumers):
            blocks.append(FeedForward(first, second))
    return blocks


def _names_before(index: GraphIndex, second: NodeProto, products: Collection[str]) -> set[str]:
    """The nodes from the product before `second` to it, by name.

    Empty where there are several products, or other operators than elementwise ones.
    """
    names: set[str] = set()
    tensors = [second.input[0]]
    while tensors:
        tensor = tensors.pop()
        node = index.producers.get(tensor)
        if tensor in index.initializers or (node is not None and node.op_type == "Constant"):
            continue
        if node is None:
            return set()
        names.add(node.name)
        if node.op_type in ELEMENTWISE.split():
            tensors += node.input
        elif node.name not in products:
            return set()
    return names if len(names.intersection(products)) == 1 else set()


def split_outliers(
    model: ModelProto,
    blocks: Sequence[FeedForward],
    peaks: dict[str, NDArray[np.float64]],
    share: float,
) -> ModelProto:
    """Cut each block into the `share` of its neurons with the largest peaks, and the rest.

    `peaks`: float64[neurons], by activation tensor.
    """
    by_second = {block.second.name: block for block in blocks}
    replaced = {node.name for block in blocks for node in block.first}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    write = GraphWriter()
    for node in model.graph.node:
        if node.name in by_second:
            block = by_second[node.name]
            hot, cold = _hottest(peaks[block.activation], share)
            _write_part(write, weights, block, HOT, hot)
            _write_part(write, weights, block, COLD, cold)
            (output,) = node.output
            write.node("Add", [output + HOT, output + COLD], output)
        elif node.name not in replaced:
            write.nodes.append(node)
    return rebuilt(model, write.nodes, constants=write.constants)


def _hottest(peaks: NDArray[np.float64], share: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    order = np.argsort(-peaks, kind="stable")
    steps = math.ceil(int(len(peaks) * share) / STEP)
    count = min(steps * STEP, len(peaks) // 2)
    return np.sort(order[:count]), np.sort(order[count:])


def _write_part(
    write: GraphWriter,
    weights: dict[str, TensorProto],
    block: FeedForward,
    part: str,
    neurons: NDArray[np.intp],
) -> None:
    inner = {name for node in block.first for name in node.output}
    all_neurons = weights[block.second.input[1]].dims[0]
    for node in (*block.first, block.second):
        axis = 0 if node is block.second else -1
        inputs = []
        for name in node.input:
            tensor = weights.get(name)
            if name in inner:
                inputs.append(name + part)
            elif tensor is not None and tensor.dims and tensor.dims[axis] == all_neurons:
                values = np.take(numpy_helper.to_array(tensor), neurons, axis)
                inputs.append(write.constant(name + part, values))
            else:
                inputs.append(name)
        new = copied(node, inputs)
        new.name += part
        new.output[0] += part
        write.nodes.append(new)
