"""An exact rewrite: attention over pairs without padding in operators that hold few scores.

The scores of all tokens with all others fill memory by the square of a pair's length, and writing
them out takes time. Operators that never do so want no mask. What a mask says is there for padding,
and for which tokens a token sees. So each attention becomes an If: where no pair of a forward is
padded, one that needs no mask, else the nodes that were there. The masks become such an If, too.
xopt's planner runs pairs of equal length together, which always takes the first branch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from xopt.optimize.graph.heads import AttentionIndex, Core, find_cores
from xopt.optimize.graph.one_row import END
from xopt.optimize.graph.sight import ATTENTION_MASK, EVERYTHING, Sight, sights_of
from xopt.optimize.graph.structure import (
    GraphIndex,
    GraphWriter,
    copied,
    import_microsoft,
    rebuilt,
)
from xopt.optimize.graph.unmasked import SharedNodes, Unmasked, write_row, write_unmasked
from xopt.runtime.scoring.backends.backend import UNPADDED

__all__ = ["fuse_attention", "unfused"]

# Nodes that make the same of one zero as of zeros for all tokens.
BROADCASTING = {"Add", "Slice", "Where"}


@dataclass(frozen=True)
class _Choice:
    """A tensor that is made by other nodes where `condition` is true."""

    output: str
    rank: int
    unmasked: Unmasked
    padded: list[NodeProto]

    def as_if(self) -> NodeProto:
        """Write the choice as a node."""
        return helper.make_node(
            "If",
            [self.unmasked.condition],
            [self.output],
            f"{UNPADDED}{self.output}",
            then_branch=_branch("then_branch", self.unmasked.nodes),
            else_branch=_branch("else_branch", _ending_in(self.padded, f"{self.output}/padded")),
        )

    def as_value(self) -> ValueInfoProto:
        return helper.make_tensor_value_info(self.output, TensorProto.FLOAT, [None] * self.rank)


def fuse_attention(model: ModelProto, max_length: int) -> tuple[ModelProto, int]:
    """Give each attention a branch for forwards without padding, and count them.

    Outputs for pairs of up to `max_length` tokens are equal but for the order of floating-point
    sums. Attention that caps its scores stays as it is.
    """
    index = AttentionIndex(model)
    cores = find_cores(index)
    sights = sights_of(model, [core.mask for core in cores], max_length)
    shared = SharedNodes()
    attentions: dict[str, _Choice] = {}
    for core in cores:
        if core.mask in sights:
            with contextlib.suppress(LookupError):
                attentions[core.output] = _attention(model, index, core, sights[core.mask], shared)
    if not attentions:
        return model, 0
    masks = {}
    for core in cores:
        if core.output in attentions:
            condition = attentions[core.output].unmasked.condition
            masks[core.mask] = sights[core.mask], condition
    choices = attentions | _masks(model, index, attentions, masks, shared)
    return _with_choices(model, choices, shared), len(attentions)


def _attention(
    model: ModelProto, index: AttentionIndex, core: Core, sight: Sight, shared: SharedNodes
) -> _Choice:
    unmasked = write_unmasked(index, core, sight, shared, f"{core.output}/fused")
    needed = {name for node in unmasked.nodes for name in node.input} | shared.reads()
    return _Choice(core.output, 3, unmasked, _made_only_for(model, index, core.output, needed))


def _made_only_for(
    model: ModelProto, index: GraphIndex, output: str, needed: Collection[str] = ()
) -> list[NodeProto]:
    """Return the nodes of a graph that nothing but `output` needs, the one that makes it last.

    What is `needed` elsewhere is left out.
    """
    inside: dict[str, NodeProto] = {}
    for node in reversed(model.graph.node):
        readers = [reader for name in node.output for reader in index.consumers[name]]
        read_inside = bool(readers) and all(reader.output[0] in inside for reader in readers)
        if output in node.output or (read_inside and not set(node.output) & set(needed)):
            inside[node.output[0]] = node
    return list(inside.values())[::-1]


def _masks(
    model: ModelProto,
    index: AttentionIndex,
    attentions: Mapping[str, _Choice],
    masks: Mapping[str, tuple[Sight, str]],
    shared: SharedNodes,
) -> dict[str, _Choice]:
    """Make one row of each mask that is not read whole where no pair is padded.

    `masks` has the sight of each one, and the condition under which attentions do not read it.
    """
    moved = {node.output[0] for choice in attentions.values() for node in choice.padded}
    choices = {}
    for mask, (sight, condition) in masks.items():
        others = [node for node in index.consumers[mask] if node.output[0] not in moved]
        is_read_whole = not all(_reads_a_row(index, node, sight) for node in others)
        if mask in moved or is_read_whole or len(index.shapes[mask]) != 4:
            continue
        row = f"{mask}/row"
        made = helper.make_node("Identity", [write_row(sight, shared)], [row], row)
        padded = _made_only_for(model, index, mask)
        choices[mask] = _Choice(mask, 4, Unmasked(condition, [made]), padded)
    return choices


def _reads_a_row(index: GraphIndex, node: NodeProto, sight: Sight) -> bool:
    """Return whether a node that reads a mask does with the row of `write_row` in its place."""
    if sight == EVERYTHING and node.op_type in BROADCASTING:
        return True
    if node.op_type != "Slice":
        return False
    starts, ends, axes = [index.constant(name).tolist() for name in node.input[1:4]]
    is_first = starts == [0] and ends == [1]
    is_last = starts == [-1] and ends[0] >= END
    return axes in ([2], [-2]) and (is_last if sight.causal else is_first)


def _with_choices(
    model: ModelProto, choices: Mapping[str, _Choice], shared: SharedNodes
) -> ModelProto:
    moved = {node.output[0] for choice in choices.values() for node in choice.padded}
    write = GraphWriter(nodes=list(shared.behind[ATTENTION_MASK]), constants=shared.write.constants)
    least = write.node("ReduceMin", [ATTENTION_MASK], f"{UNPADDED}/least", keepdims=0)
    write.node("Cast", [least], UNPADDED, to=TensorProto.BOOL)
    write.nodes += shared.behind[UNPADDED]
    for node in model.graph.node:
        name = node.output[0]
        if name in choices:
            write.nodes.append(choices[name].as_if())
        elif name not in moved:
            write.nodes.append(node)
        write.nodes += shared.behind[name]
    values = [choice.as_value() for choice in choices.values()]
    fused = rebuilt(
        model,
        write.nodes,
        constants=write.constants,
        value_info=[*model.graph.value_info, *values],
    )
    return import_microsoft(fused)


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


def _branch(name: str, nodes: Sequence[NodeProto]) -> GraphProto:
    result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [result])


def _ending_in(nodes: Sequence[NodeProto], output: str) -> list[NodeProto]:
    """Nodes of which the last one makes the tensor `output`."""
    last = copied(nodes[-1], nodes[-1].input)
    last.output[0] = output
    return [*nodes[:-1], last]
