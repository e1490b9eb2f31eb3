"""An exact rewrite: attention over pairs without padding in one operator.

onnxruntime's MultiHeadAttention is fastest without a mask: its flash kernel never writes out the
scores of all tokens with all others. A mask is there for padding only. So each attention becomes an
If: the operator where no pair of a forward is padded, else the nodes that were there. xopt's
planner runs pairs of equal length together, which always takes the first branch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from xopt.optimize.graph.heads import Attention, find_attentions
from xopt.optimize.graph.structure import (
    GraphIndex,
    GraphWriter,
    copied,
    import_microsoft,
    needed_for,
    open_session,
    rebuilt,
)
from xopt.runtime.scoring.backends.backend import UNPADDED

__all__ = ["fuse_attention", "unfused"]

MASK = "attention_mask"
# Tokens of the pairs that masks are tried with: fewer and more than a window of local attention.
LENGTHS = (2, 300)


def fuse_attention(model: ModelProto) -> tuple[ModelProto, int]:
    """Give each attention a branch for forwards without padding, and count them.

    Outputs are equal but for the order of floating-point sums. Attention with windows, biases of
    its own or another shape than BERT's stays as it is.
    """
    attentions = _with_padding_mask(model)
    if not attentions:
        return model, 0
    by_output = {attention.output: attention for attention in attentions}
    replaced = {node.output[0] for attention in attentions for node in attention.nodes}
    write = GraphWriter()
    least = write.node("ReduceMin", [MASK], f"{UNPADDED}/least", keepdims=0)
    write.node("Cast", [least], UNPADDED, to=TensorProto.BOOL)
    shapes = []
    for node in model.graph.node:
        name = node.output[0]
        if name in by_output:
            attention = by_output[name]
            write.nodes.append(_branches(attention))
            shape = [None, None, attention.heads * attention.head_size]
            shapes.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        elif name not in replaced:
            write.nodes.append(node)
    fused = rebuilt(model, write.nodes, value_info=[*model.graph.value_info, *shapes])
    return import_microsoft(fused), len(attentions)


def unfused(model: ModelProto) -> ModelProto:
    """Build the graph as it was before `fuse_attention`."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "If" and node.name.startswith(UNPADDED):
            for attribute in node.attribute:
                if attribute.name == "else_branch":
                    nodes += _ending_in(attribute.g.node, node.output[0])
        elif not node.name.startswith(UNPADDED):
            nodes.append(node)
    return rebuilt(model, nodes)


def _with_padding_mask(model: ModelProto) -> list[Attention]:
    """The attentions whose mask adds nothing where no pair is padded.

    The part of the graph that makes the masks is run to see it.
    """
    attentions = find_attentions(model)
    masks = sorted({attention.mask for attention in attentions})
    mask_graph = rebuilt(model, needed_for(model.graph.node, masks), outputs=masks)
    if not masks or MASK not in GraphIndex(mask_graph).consumers:
        return []
    session = open_session(mask_graph)
    others: set[str] = set()
    for length in LENGTHS:
        unpadded = np.ones((2, length), np.int64)
        added = session.run(masks, {value.name: unpadded for value in mask_graph.graph.input})
        others.update(name for name, value in zip(masks, added, strict=True) if value.any())
    return [attention for attention in attentions if attention.mask not in others]


def _branches(attention: Attention) -> NodeProto:
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
    return helper.make_node(
        "If",
        [UNPADDED],
        [output],
        f"{UNPADDED}{output}",
        then_branch=_branch("then_branch", [fused]),
        else_branch=_branch("else_branch", _ending_in(attention.nodes, f"{output}/padded")),
    )


def _branch(name: str, nodes: Sequence[NodeProto]) -> GraphProto:
    result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [result])


def _ending_in(nodes: Sequence[NodeProto], output: str) -> list[NodeProto]:
    """Nodes of which the last one makes the tensor `output`."""
    last = copied(nodes[-1], nodes[-1].input)
    last.output[0] = output
    return [*nodes[:-1], last]
