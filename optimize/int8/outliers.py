"""An exact rewrite: the outlier neurons of a feed-forward block get products of their own.

A few neurons reach values many times those of the rest, and a scale that covers them leaves few
steps for the others. Neurons may stand in any order, so the block is cut into two: each part has
its own columns of the first weight matrix, its own activation and its own rows of the second, and
the two products are added. In floating point that is the same sum; in INT8 each part has a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from xopt.optimize.graph.one_row import ELEMENTWISE
from xopt.optimize.graph.structure import all_reads, makers, readers, rebuilt

__all__ = ["Split", "find_blocks", "split_outliers"]

STEP = 16  # the hot part is a multiple of this: the width of a vector register


@dataclass(frozen=True)
class Split:
    """A feed-forward block: the nodes from its first product to the activation, and its second
    product.
    """

    first: tuple[onnx.NodeProto, ...]
    second: onnx.NodeProto

    @property
    def activation(self) -> str:
        """The tensor between the products: one channel a neuron."""
        return str(self.second.input[0])


def find_blocks(model: onnx.ModelProto, products: Sequence[str]) -> list[Split]:
    """The blocks of two named products, with nothing between them but elementwise operators on
    the first's result.
    """
    maker, read_by = makers(model), readers(model)
    constants = _constants(model)
    blocks = []
    for node in model.graph.node:
        if node.name in products:
            chain = _chain(node.input[0], maker, constants, set(products))
            inside = {member.name for member in chain} | {node.name}
            if chain and all(
                reader.name in inside for member in chain for reader in read_by[member.output[0]]
            ):
                order = [
                    member for member in model.graph.node if member.name in inside - {node.name}
                ]
                blocks.append(Split(tuple(order), node))
    return blocks


def _constants(model: onnx.ModelProto) -> set[str]:
    made = (node.output[0] for node in model.graph.node if node.op_type == "Constant")
    return {*made, *(tensor.name for tensor in model.graph.initializer)}


def _chain(
    tensor: str, maker: dict[str, onnx.NodeProto], constants: set[str], products: set[str]
) -> list[onnx.NodeProto]:
    """The nodes from one product to `tensor`; empty where there is anything else between them."""
    chain: dict[str, onnx.NodeProto] = {}
    todo, first = [tensor], set()
    while todo:
        node = maker.get(todo.pop())
        if node is None:
            return []
        chain[node.name] = node
        if node.name in products:
            first.add(node.name)
        elif node.op_type in ELEMENTWISE.split():
            todo += [name for name in node.input if name not in constants]
        else:
            return []
    return list(chain.values()) if len(first) == 1 else []


def split_outliers(
    model: onnx.ModelProto,
    blocks: Sequence[Split],
    peaks: dict[str, NDArray[np.float64]],
    share: float,
) -> onnx.ModelProto:
    """Cut each block into the `share` of its neurons with the largest of `peaks`, by activation
    tensor, and the rest.

    The new tensors are named after the old ones, with /hot and /cold behind.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    replaced: dict[str, list[onnx.NodeProto]] = {}
    gone: set[str] = set()
    made: dict[str, NDArray[Any]] = {}
    for block in blocks:
        peak = peaks[block.activation]
        order = np.argsort(-peak, kind="stable")
        hot = min(-(-int(len(peak) * share) // STEP) * STEP, len(peak) // 2)
        nodes: list[onnx.NodeProto] = []
        for part, channels in (("hot", np.sort(order[:hot])), ("cold", np.sort(order[hot:]))):
            nodes += _part(block, part, channels, len(peak), weights, made)
        outputs = [f"{block.second.output[0]}/{part}" for part in ("hot", "cold")]
        nodes.append(
            helper.make_node("Add", outputs, block.second.output, f"{block.second.name}/parts")
        )
        replaced[block.second.name] = nodes
        gone |= {node.name for node in block.first}
    kept = [
        new
        for node in model.graph.node
        if node.name not in gone
        for new in replaced.get(node.name, [node])
    ]
    read = all_reads(kept)
    constants = [tensor for tensor in weights.values() if tensor.name in read]
    return rebuilt(
        model,
        kept,
        constants + [numpy_helper.from_array(value, name) for name, value in made.items()],
    )


def _part(
    block: Split,
    part: str,
    channels: NDArray[np.intp],
    neurons: int,
    weights: dict[str, onnx.TensorProto],
    made: dict[str, NDArray[Any]],
) -> list[onnx.NodeProto]:
    """The block's nodes for some of its neurons; the weights that they read go into `made`."""
    inner = {output for node in block.first for output in node.output}
    nodes = []
    for node in (*block.first, block.second):
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.name = f"{node.name}/{part}"
        new.output[0] = f"{node.output[0]}/{part}"
        for i, name in enumerate(node.input):
            axis = 0 if node is block.second else -1
            if name in inner:
                new.input[i] = f"{name}/{part}"
            elif name in weights and weights[name].dims and weights[name].dims[axis] == neurons:
                new.input[i] = f"{name}/{part}"
                made[new.input[i]] = np.ascontiguousarray(
                    np.take(numpy_helper.to_array(weights[name]), channels, axis)
                )
        nodes.append(new)
    return nodes
