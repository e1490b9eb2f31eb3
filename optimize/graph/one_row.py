"""An exact rewrite: what the head never reads is not computed.

A cross-encoder's head reads one token only: the first, or a decoder's last. So the last layer
needs keys and values for all tokens and everything else for one. The rewrite knows no architecture.
Going backwards through the graph, it asks of each tensor whether all readers need just the first or
the last entry along one axis. If so, and if the operator that makes it computes the entries of that
axis independently, one entry of the operator's inputs is enough. Where an input has more, a Slice
takes the entry.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from xopt.optimize.graph.shapes import Dim, shapes_from_inputs, tensor_shapes
from xopt.optimize.graph.structure import GraphIndex, GraphWriter, branch_reads, copied, rebuilt

__all__ = ["ELEMENTWISE", "END", "keep_one_row"]

ELEMENTWISE = (
    "Abs Add Cast Clip Div Elu Equal Erf Exp Gelu Greater GreaterOrEqual HardSigmoid HardSwish "
    "Identity IsNaN LeakyRelu Less LessOrEqual Log Max Min Mul Neg Not Pow Reciprocal Relu Sigmoid "
    "Softplus Sqrt Sub Tanh Where"
)
ALONG_LAST = "LayerNormalization LogSoftmax Softmax"  # mix the entries of the last axis only
REDUCTIONS = "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum"

FIRST = 0
LAST = -1
END = np.iinfo(np.int32).max  # an index from which on exporters mean the end of an axis


class Entry(NamedTuple):
    """The one entry of a tensor along an axis that is needed: `position` is FIRST or LAST."""

    axis: int
    position: int


# What a node needs of each input: an entry, None for all of it, or the name of a new constant to
# read in its place. A rule gives axes instead of entries.
InputNeeds = list[Entry | str | None]
InputAxes = list[int | str | None]


class _Facts(GraphIndex):
    """What the rules ask of a graph, and the constants that they make.

    A LookupError stops the rule that asks.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__(model)
        self.shapes: dict[str, list[Dim]] = tensor_shapes(model)
        self.new_constants: dict[str, NDArray[Any]] = {}

    def rank(self, name: str) -> int:
        return len(self.shapes[name])

    def axes(self, name: str, rank: int) -> set[int]:
        """The axes that a constant lists, counted from the front."""
        return {int(axis) % rank for axis in self.constant(name).ravel()}

    def axis(self, node: NodeProto, default: int) -> int:
        return _attribute(node, "axis", default) % self.rank(node.input[0])


def _attribute(node: NodeProto, name: str, default: int) -> int:
    for attribute in node.attribute:
        if attribute.name == name:
            return int(attribute.i)
    return default


def keep_one_row(model: ModelProto) -> tuple[ModelProto, int]:
    """Leave out what the head never reads, and count the matrix products that see one row a pair.

    Outputs are equal but for the order of floating-point sums. Where the head reads more than a
    first or a last entry (mean pooling), nothing changes and the count is 0.
    """
    source = shapes_from_inputs(model)
    facts = _Facts(source)
    needs_by_tensor: dict[str, set[Entry | None]] = defaultdict(set)
    for output in source.graph.output:
        needs_by_tensor[output.name].add(None)
    needs_by_node: dict[int, InputNeeds] = {}
    narrowed: set[int] = set()  # the nodes whose outputs now have one entry on an axis
    for i, node in reversed(list(enumerate(source.graph.node))):
        needed = set().union(*(needs_by_tensor[name] for name in node.output))
        if not needed:
            continue  # nobody reads it any more
        inputs = _input_needs(facts, node, needed)
        if inputs is None:
            inputs = [None] * len(node.input)
        elif needed != {None}:
            narrowed.add(i)
        needs_by_node[i] = inputs
        for name, need in zip(node.input, inputs, strict=True):
            if not isinstance(need, str):
                needs_by_tensor[name].add(need)
        for name in branch_reads(node):
            needs_by_tensor[name].add(None)
    products = sum(source.graph.node[i].op_type == "MatMul" for i in narrowed)
    if not products:
        return model, 0
    return _rewritten(source, facts, needs_by_node, narrowed), products


def _input_needs(facts: _Facts, node: NodeProto, needed: set[Entry | None]) -> InputNeeds | None:
    """What a node needs of each input if only `needed` is read of it; None for everything."""
    try:
        if needed == {None}:
            return _entry_read(facts, node)
        (entry,) = needed
        if entry is None or node.op_type not in RULES:
            return None
        axes = RULES[node.op_type](facts, node, entry.axis)
    except (LookupError, ValueError):
        # A rank, a constant or an attribute is not known, or readers need different entries.
        return None
    if axes is None:
        return None
    return [Entry(axis, entry.position) if isinstance(axis, int) else axis for axis in axes]


def _entry_read(facts: _Facts, node: NodeProto) -> InputNeeds | None:
    """The one entry that a Gather or a Slice takes of an axis: where the rewrite begins."""
    # One entry of a shape, which has rank 1, gains nothing.
    if node.op_type not in {"Gather", "Slice"} or facts.rank(node.input[0]) < 2:
        return None
    entry = _gathered(facts, node) if node.op_type == "Gather" else _sliced(facts, node)
    if entry is None:
        return None
    return [entry, *[None] * (len(node.input) - 1)]


def _gathered(facts: _Facts, node: NodeProto) -> Entry | None:
    positions = set(facts.constant(node.input[1]).ravel().tolist())
    if positions not in ({FIRST}, {LAST}):
        return None
    return Entry(facts.axis(node, 0), positions.pop())


def _sliced(facts: _Facts, node: NodeProto) -> Entry | None:
    (start,) = facts.constant(node.input[1]).tolist()
    (end,) = facts.constant(node.input[2]).tolist()
    (axis,) = facts.axes(node.input[3], facts.rank(node.input[0]))
    if len(node.input) > 4 and facts.constant(node.input[4]).tolist() != [1]:
        return None
    if start == FIRST and end == 1:
        return Entry(axis, FIRST)
    if start == LAST and end >= END:
        return Entry(axis, LAST)
    return None


# A rule gets the axis of the output along which one entry is needed. It says along which axis of
# each input one entry is enough, with None for an input that is needed whole. It returns None where
# all inputs are.


def _elementwise(facts: _Facts, node: NodeProto, axis: int) -> InputAxes:
    rank = facts.rank(node.output[0])
    return [_broadcast_axis(facts, name, axis, rank) if name else None for name in node.input]


def _broadcast_axis(facts: _Facts, name: str, axis: int, rank: int) -> int | None:
    """The axis of an operand that is broadcast to `rank`; None where it has one entry there."""
    own = axis - (rank - facts.rank(name))
    return None if own < 0 or facts.shapes[name][own] == 1 else own


def _along_last(facts: _Facts, node: NodeProto, axis: int) -> InputAxes | None:
    if axis >= facts.axis(node, -1):
        return None
    return _of_first_input(node, axis)


def _of_first_input(node: NodeProto, axis: int) -> InputAxes:
    return [axis, *[None] * (len(node.input) - 1)]


def _reduce(facts: _Facts, node: NodeProto, axis: int) -> InputAxes | None:
    rank = facts.rank(node.input[0])
    reduced = facts.axes(node.input[1], rank)
    if not _attribute(node, "keepdims", 1):
        axis = _axes_kept(reduced, rank)[axis]
    return None if axis in reduced else [axis, None]


def _axes_kept(removed: set[int], rank: int) -> list[int]:
    return [axis for axis in range(rank) if axis not in removed]


def _matmul(facts: _Facts, node: NodeProto, axis: int) -> InputAxes:
    left, right = node.input
    rank = facts.rank(node.output[0])
    if axis == rank - 2:
        return [facts.rank(left) - 2, None]
    if axis == rank - 1:
        return [None, facts.rank(right) - 1]
    return _elementwise(facts, node, axis)


def _transpose(_: _Facts, node: NodeProto, axis: int) -> InputAxes:
    return [node.attribute[0].ints[axis]]


def _reshape(facts: _Facts, node: NodeProto, axis: int) -> InputAxes | None:
    """One entry is enough where the axis survives, with as many entries behind it.

    The new shape has size 1 there.
    """
    before = facts.shapes[node.input[0]]
    after = facts.shapes[node.output[0]]
    tail = after[axis + 1 :]
    own = _surviving_axis(before, after[axis], tail)
    if own is None:
        return None
    if own == axis:
        lead = [0] * axis  # 0 keeps the size that was there
    else:
        lead = [dim if isinstance(dim, int) else -1 for dim in after[:axis]]
        if lead.count(-1) > 1:
            return None
    shape = f"{node.output[0]}_first_shape"
    facts.new_constants[shape] = np.array([*lead, 1, *tail], np.int64)
    return [own, shape]


def _surviving_axis(before: list[Dim], size: Dim, tail: list[Dim]) -> int | None:
    """The axis of that size in `before` that has as many entries behind it as are in `tail`."""
    behind = _product(tail)
    if behind is None or size is None:
        return None
    for axis, dim in enumerate(before):
        if dim == size and _product(before[axis + 1 :]) == behind:
            return axis
    return None


def _product(dims: list[Dim]) -> int | None:
    product = 1
    for dim in dims:
        if not isinstance(dim, int):
            return None
        product *= dim
    return product


def _squeeze(facts: _Facts, node: NodeProto, axis: int) -> InputAxes:
    rank = facts.rank(node.input[0])
    removed = facts.axes(node.input[1], rank)
    return [_axes_kept(removed, rank)[axis], None]


def _unsqueeze(facts: _Facts, node: NodeProto, axis: int) -> InputAxes:
    rank = facts.rank(node.output[0])
    added = facts.axes(node.input[1], rank)
    return [_axes_kept(added, rank).index(axis), None]  # ValueError where the axis is new


def _all_inputs(facts: _Facts, node: NodeProto, axis: int) -> InputAxes | None:
    return None if axis == facts.axis(node, 0) else [axis] * len(node.input)


def _split(facts: _Facts, node: NodeProto, axis: int) -> InputAxes | None:
    if axis == facts.axis(node, 0):
        return None
    return _of_first_input(node, axis)


def _slice(facts: _Facts, node: NodeProto, axis: int) -> InputAxes | None:
    if axis in facts.axes(node.input[3], facts.rank(node.input[0])):
        return None
    return _of_first_input(node, axis)


def _gather(facts: _Facts, node: NodeProto, axis: int) -> InputAxes | None:
    own = facts.axis(node, 0)
    index_rank = facts.rank(node.input[1])
    if axis < own:
        return [axis, None]
    if axis >= own + index_rank:
        return [axis - index_rank + 1, None]
    return None


RULES: dict[str, Callable[[_Facts, NodeProto, int], InputAxes | None]] = {
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(ALONG_LAST.split(), _along_last),
    **dict.fromkeys(REDUCTIONS.split(), _reduce),
    "Concat": _all_inputs,
    "Gather": _gather,
    "GatherElements": _all_inputs,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _rewritten(
    model: ModelProto,
    facts: _Facts,
    needs_by_node: dict[int, InputNeeds],
    narrowed: set[int],
) -> ModelProto:
    """Build the model without unread nodes, with new shapes and Slices."""
    narrow_tensors: set[str] = set()
    for i in narrowed:
        narrow_tensors.update(model.graph.node[i].output)
    write = GraphWriter(constants=facts.new_constants)
    slices: dict[tuple[str, Entry], str] = {}
    for i, node in enumerate(model.graph.node):
        if i not in needs_by_node:
            continue
        inputs = []
        for name, need in zip(node.input, needs_by_node[i], strict=True):
            if isinstance(need, str):
                inputs.append(need)
            elif need is None or name in narrow_tensors:
                inputs.append(name)
            else:
                if (name, need) not in slices:
                    slices[name, need] = _write_slice(write, name, need)
                inputs.append(slices[name, need])
        new = copied(node, inputs)
        # For a Reshape to a new shape: without `allowzero`, 0 is the size that was there.
        if any(isinstance(need, str) for need in needs_by_node[i]):
            new.ClearField("attribute")
        write.nodes.append(new)
    return rebuilt(model, write.nodes, constants=write.constants)


def _write_slice(write: GraphWriter, name: str, entry: Entry) -> str:
    side = "first" if entry.position == FIRST else "last"
    end = END if entry.position == LAST else 1
    bounds = [
        write.constant(f"one_row_{value}", np.array([value], np.int64))
        for value in (entry.position, end, entry.axis)
    ]
    return write.node("Slice", [name, *bounds], f"{name}_{side}_{entry.axis}")
