"""An exact rewrite: what the head never reads is not computed.

A cross-encoder's head reads one token only, the first, or the last of a decoder, so the last
layer needs its keys and values for all tokens and everything else for one. The rewrite knows no
architecture: going backwards through the graph it asks of each tensor whether all its readers
want just the first or the last entry along one axis, and if so, and the operator computes each
entry of that axis by itself, passes the wish on to the operator's inputs. Where a wish can't be
passed on, a Slice grants it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from xopt.optimize.graph.shapes import Dim, shapes_from_inputs, tensor_shapes
from xopt.optimize.graph.structure import SMALL, outer_reads, rebuilt

__all__ = ["ELEMENTWISE", "keep_one_row"]

ELEMENTWISE = (
    "Abs Add Cast Clip Div Elu Equal Erf Exp Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsNaN "
    "LeakyRelu Less LessOrEqual Log Max Min Mul Neg Not Pow Reciprocal Relu Sigmoid Softplus Sqrt Sub Tanh Where"
)
ALONG_LAST = "LayerNormalization LogSoftmax Softmax"  # mix the entries of the last axis only
REDUCTIONS = "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum"

FIRST, LAST = 0, -1
END = np.iinfo(np.int32).max  # an index from which on exporters mean the end of an axis
# What an operator then wants of each input: the axis of which one entry is enough, None for all
# of it, or the name of a new constant to read in its place.
Wishes = list["int | str | None"]
Wish = tuple[int, int]  # an axis, and whether its first or its last entry is wanted


@dataclass
class _Graph:
    """The facts about a graph that the rules ask for."""

    shapes: dict[str, list[Dim]]
    constants: dict[str, NDArray[Any]]
    new_constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def rank(self, name: str) -> int:
        """The rank of a tensor; KeyError where it is not known, which stops the rule that asks."""
        return len(self.shapes[name])


def keep_one_row(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same function with less work, and how many matrix products now see one row a pair.

    Outputs are equal but for the order of floating-point sums. Where the head reads more than a
    first or a last entry (mean pooling), nothing changes and the count is 0.
    """
    given, model = model, shapes_from_inputs(model)
    graph = _facts(model)
    wishes: dict[str, set[Wish | None]] = defaultdict(set)  # by tensor: what its readers want of it
    for output in model.graph.output:
        wishes[output.name].add(None)
    narrow: set[int] = set()  # the nodes whose outputs have one entry on an axis
    reads: dict[int, list[Wish | str | None]] = {}  # by node
    for i in reversed(range(len(model.graph.node))):
        node = model.graph.node[i]
        wanted = set().union(*(wishes[name] for name in node.output))
        if not wanted:
            continue  # nobody reads it any more
        inputs, entry = _pass_on(graph, node, wanted)
        reads[i] = [
            (wish, entry) if isinstance(wish, int) else wish
            for wish in inputs or [None] * len(node.input)
        ]
        if inputs and wanted != {None}:
            narrow.add(i)
        for name, wish in zip(node.input, reads[i], strict=True):
            if not isinstance(wish, str):
                wishes[name].add(wish)
        for name in outer_reads(node):
            wishes[name].add(None)
    products = sum(model.graph.node[i].op_type == "MatMul" for i in narrow)
    return (_rewrite(model, graph, reads, narrow), products) if products else (given, 0)


def _facts(model: onnx.ModelProto) -> _Graph:
    shapes = tensor_shapes(model)
    constants = {}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            constants[tensor.name] = numpy_helper.to_array(tensor)
    shapes.update({name: list(value.shape) for name, value in constants.items()})
    return _Graph(shapes, constants)


def _pass_on(
    graph: _Graph, node: onnx.NodeProto, wanted: set[Wish | None]
) -> tuple[Wishes | None, int]:
    """What `node` wants of its inputs if that is less than all, else None; and which entry of an
    axis.
    """
    try:
        if wanted == {None}:
            return _one_entry(graph, node)
        (wish,) = wanted
        rule = RULES.get(node.op_type)
        return (rule(graph, node, wish[0]), wish[1]) if rule and wish is not None else (None, FIRST)
    # a rank, a constant or an attribute is not known, or the wishes differ
    except (KeyError, ValueError, IndexError):
        return None, FIRST


def _one_entry(graph: _Graph, node: onnx.NodeProto) -> tuple[Wishes | None, int]:
    """Where the wish begins: an operator that reads one entry of an axis, whatever is wanted of
    it, and which entry.
    """
    if node.op_type not in {"Gather", "Slice"} or graph.rank(node.input[0]) < 2:
        return None, FIRST  # one entry of a shape gains nothing
    if node.op_type == "Gather":
        entries = set(graph.constants[node.input[1]].ravel().tolist())
        if entries in ({FIRST}, {LAST}):
            return [_axis(graph, node, 0), None], entries.pop()
    elif len(node.input) >= 4 and _steps(graph, node) == [1]:
        (start,), (end,), (axis,) = (graph.constants[name].tolist() for name in node.input[1:4])
        wishes: Wishes = [int(axis) % graph.rank(node.input[0]), *[None] * (len(node.input) - 1)]
        if (start, end) == (0, 1):
            return wishes, FIRST
        if start == -1 and end >= END:
            return wishes, LAST
    return None, FIRST


def _steps(graph: _Graph, node: onnx.NodeProto) -> list[int]:
    return [int(step) for step in graph.constants[node.input[4]]] if len(node.input) > 4 else [1]


def _axis(graph: _Graph, node: onnx.NodeProto, default: int) -> int:
    """The attribute `axis`, counted from the front."""
    value = next((a.i for a in node.attribute if a.name == "axis"), default)
    return int(value) % graph.rank(node.input[0])


def _elementwise(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes:
    return [
        _broadcast(graph, name, axis, graph.rank(node.output[0])) if name else None
        for name in node.input
    ]


def _broadcast(graph: _Graph, name: str, axis: int, rank: int) -> int | None:
    """The axis of a broadcast operand, counted from the back; None where it has one entry there,
    or no such axis.
    """
    own = axis - (rank - graph.rank(name))
    return None if own < 0 or graph.shapes[name][own] == 1 else own


def _along_last(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes | None:
    return [axis, *[None] * (len(node.input) - 1)] if axis < _axis(graph, node, -1) else None


def _reduce(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes | None:
    """Where the axis is not among those that are reduced, which stay with one entry, or go."""
    rank = graph.rank(node.input[0])
    gone = {int(a) % rank for a in graph.constants[node.input[1]].ravel()}
    kept = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
    own = axis if kept else [i for i in range(rank) if i not in gone][axis]
    return None if own in gone else [own, None]


def _matmul(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes:
    left, right = node.input
    rank = graph.rank(node.output[0])
    if axis == rank - 2:
        return [graph.rank(left) - 2, None]
    if axis == rank - 1:
        return [None, graph.rank(right) - 1]
    return [_broadcast(graph, left, axis, rank), _broadcast(graph, right, axis, rank)]


def _transpose(_: _Graph, node: onnx.NodeProto, axis: int) -> Wishes:
    (order,) = (attribute.ints for attribute in node.attribute if attribute.name == "perm")
    return [order[axis]]


def _reshape(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes | None:
    """Where the axis survives as it is, with the same entries behind it: the new shape names one
    entry there.
    """
    before, after = graph.shapes[node.input[0]], graph.shapes[node.output[0]]
    tail = after[axis + 1 :]
    size = _product(tail)
    if size is None:
        return None
    own = next(
        (
            i
            for i in range(len(before))
            if before[i] == after[axis] and _product(before[i + 1 :]) == size
        ),
        None,
    )
    lead = after[:axis]
    unknown = sum(not isinstance(dim, int) for dim in lead)
    if own is None or after[axis] is None or (unknown > 1 and own != axis):
        return None
    kept = [0] * axis if own == axis else [dim if isinstance(dim, int) else -1 for dim in lead]
    shape = f"{node.output[0]}_first_shape"
    graph.new_constants[shape] = np.array([*kept, 1, *tail], np.int64)
    return [own, shape]


def _product(dims: list[Dim]) -> int | None:
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return math.prod(numbers) if len(numbers) == len(dims) else None


def _squeeze(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes:
    gone = {int(a) % graph.rank(node.input[0]) for a in graph.constants[node.input[1]]}
    return [[i for i in range(graph.rank(node.input[0])) if i not in gone][axis], None]


def _unsqueeze(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes | None:
    new = {int(a) % graph.rank(node.output[0]) for a in graph.constants[node.input[1]]}
    return None if axis in new else [axis - sum(a < axis for a in new), None]


def _other_axis(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes | None:
    """Operators that cut or join along their own axis and leave the others alone."""
    if axis == _axis(graph, node, 0):
        return None
    return [axis if node.op_type == "Concat" or not i else None for i in range(len(node.input))]


def _slice(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes | None:
    cut = {int(a) % graph.rank(node.input[0]) for a in graph.constants[node.input[3]]}
    return None if axis in cut else [axis, *[None] * (len(node.input) - 1)]


def _gather(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes | None:
    own, indices = _axis(graph, node, 0), graph.rank(node.input[1])
    if own <= axis < own + indices:
        return None
    return [axis if axis < own else axis - indices + 1, None]


def _gather_elements(graph: _Graph, node: onnx.NodeProto, axis: int) -> Wishes | None:
    return None if axis == _axis(graph, node, 0) else [axis, axis]


RULES: dict[str, Callable[[_Graph, onnx.NodeProto, int], Wishes | None]] = {
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(ALONG_LAST.split(), _along_last),
    **dict.fromkeys(REDUCTIONS.split(), _reduce),
    "Concat": _other_axis,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _other_axis,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _rewrite(
    model: onnx.ModelProto,
    graph: _Graph,
    reads: dict[int, list[Wish | str | None]],
    narrow: set[int],
) -> onnx.ModelProto:
    """The model with its unread nodes gone, its wishes passed on, and a Slice where one could not
    be.
    """
    small = {name for i in narrow for name in model.graph.node[i].output}
    nodes: list[onnx.NodeProto] = []
    sliced: dict[tuple[str, Wish], str] = {}

    def read(name: str, wish: Wish | str | None) -> str:
        if wish is None or name in small:
            return name
        if isinstance(wish, str):
            return wish
        if (name, wish) not in sliced:
            axis, entry = wish
            sliced[name, wish] = f"{name}_{'first' if entry == FIRST else 'last'}_{axis}"
            bounds = {f"one_row_{value}": value for value in (entry, entry + 1 or END, axis)}
            graph.new_constants.update(
                {bound: np.array([value], np.int64) for bound, value in bounds.items()}
            )
            read_from = [f"one_row_{value}" for value in (entry, entry + 1 or END, axis)]
            nodes.append(
                helper.make_node(
                    "Slice", [name, *read_from], [sliced[name, wish]], f"/one_row/{len(sliced)}"
                )
            )
        return sliced[name, wish]

    for i, node in enumerate(model.graph.node):
        if i in reads:
            new = onnx.NodeProto()
            new.CopyFrom(node)
            new.input[:] = [
                read(name, wish) for name, wish in zip(node.input, reads[i], strict=True)
            ]
            # a new shape, in which 0 is the size that was there
            if any(isinstance(wish, str) for wish in reads[i]):
                new.ClearField("attribute")
            nodes.append(new)
    new_constants = [
        numpy_helper.from_array(value, name) for name, value in graph.new_constants.items()
    ]
    return rebuilt(model, nodes, [*model.graph.initializer, *new_constants])
