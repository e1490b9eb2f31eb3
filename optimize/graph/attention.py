"""An exact rewrite: attention over pairs without padding in one operator.

onnxruntime's MultiHeadAttention is fastest without a mask: its flash kernel never writes out the
scores of all tokens with all others. A mask is there for padding alone, so each attention becomes
an If: where no pair of a forward is padded, the operator; else the nodes that were there. xopt's
planner runs pairs of equal length together, which takes the first branch always; other programs
load the file as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from xopt.optimize.graph.heads import LENGTHS, MASK, Attention, find_attentions, run_masks
from xopt.optimize.graph.structure import import_microsoft, rebuilt
from xopt.runtime.scoring.backends.backend import UNPADDED

__all__ = ["fuse_attention", "unfused"]


def fuse_attention(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same function, with a branch for forwards without padding in each attention, and how
    many there are.

    Outputs are equal but for the order of floating-point sums. Attention with windows, biases of
    its own or another shape than BERT's stays as it is.
    """
    found = _only_padding(model, find_attentions(model))
    if not found:
        return model, 0
    by_last = {attention.output: attention for attention in found}
    inside = {node.output[0] for attention in found for node in attention.nodes}
    nodes, shapes = _condition(), []
    for node in model.graph.node:
        name = node.output[0]
        if name in by_last:
            nodes.append(_branches(by_last[name]))
            shape = [None, None, by_last[name].heads * by_last[name].size]
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
            (padded,) = (
                attribute.g for attribute in node.attribute if attribute.name == "else_branch"
            )
            nodes.extend(_renamed(padded.node, node.output[0]))
        elif not node.name.startswith(UNPADDED):
            nodes.append(node)
    return rebuilt(model, nodes, model.graph.initializer)


def _only_padding(model: onnx.ModelProto, found: Sequence[Attention]) -> list[Attention]:
    """The attentions whose mask adds nothing where no pair is padded, by running the mask's part
    of the graph.
    """
    asked = list(run_masks(model, found, (np.ones((2, length), np.int64) for length in LENGTHS)))
    return [
        each for each in found if asked and not any(values[each.mask].any() for values in asked)
    ]


def _condition() -> list[onnx.NodeProto]:
    """Whether no pair of a forward is padded."""
    least = f"{UNPADDED}/least"
    return [
        helper.make_node("ReduceMin", [MASK], [least], least, keepdims=0),
        helper.make_node("Cast", [least], [UNPADDED], UNPADDED, to=TensorProto.BOOL),
    ]


def _branches(attention: Attention) -> onnx.NodeProto:
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
            nodes,
            name,
            [],
            [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
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
