"""Shapes of a graph's tensors, as far as they are known before it runs."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from xopt.optimize.graph.structure import SMALL, GraphWriter, errors_only, rebuilt, with_graph

__all__ = ["Dim", "shapes_from_inputs", "tensor_shapes", "with_types"]

Dim = int | str | None  # a number, a name for one that is the same wherever it stands, or unknown


def tensor_shapes(model: ModelProto) -> dict[str, list[Dim]]:
    """Infer the shape of each tensor whose rank is known, by name."""
    inferred = _infer_symbolic(_without_weights(model)).graph
    shapes: dict[str, list[Dim]] = {}
    for tensor in model.graph.initializer:
        shapes[tensor.name] = list(tensor.dims)
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = [_dim(dim) for dim in value.type.tensor_type.shape.dim]
    return shapes


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None


def with_types(model: ModelProto) -> ModelProto:
    """Add the types of its tensors to a graph, and the shapes that onnx infers."""
    known = onnx.shape_inference.infer_shapes(_without_weights(model)).graph.value_info
    return rebuilt(model, model.graph.node, value_info=known)


def _without_weights(model: ModelProto) -> ModelProto:
    """Turn weights into inputs: they tell no shape, and may be more than a message holds."""
    graph = model.graph
    small = []
    inputs = list(graph.input)
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            small.append(tensor)
        else:
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    light = helper.make_graph(graph.node, graph.name, inputs, graph.output, small)
    return with_graph(model, light)


def _infer_symbolic(model: ModelProto) -> ModelProto:
    quiet = errors_only(SymbolicShapeInference.__module__)  # of sizes that it cannot compare
    try:
        # Where it fails, it leaves a file in the working directory.
        with TemporaryDirectory() as scratch, _working_in(scratch), quiet:
            inferred: ModelProto = SymbolicShapeInference.infer_shapes(model, auto_merge=True)
        return inferred
    # It raises nothing more special. What depends on an unknown shape is left alone.
    except Exception:
        return model


@contextlib.contextmanager
def _working_in(folder: str) -> Iterator[None]:
    """contextlib.chdir, which Python 3.10 lacks."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def shapes_from_inputs(model: ModelProto) -> ModelProto:
    """Compute the shapes that a graph reads from its inputs' shapes, where they are known.

    A tensor whose own shape is read could not be narrowed without changing what is read.
    """
    shapes = tensor_shapes(model)
    origins = _input_axes(model, shapes)
    sizes = GraphWriter()
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        dims = _read_shape(node, shapes)
        if len(dims) < 3 or not all(isinstance(dim, int) or dim in origins for dim in dims):
            nodes.append(node)
            continue
        names = [_write_size(sizes, dim, origins) for dim in dims]
        nodes.append(helper.make_node("Concat", names, node.output, node.name, axis=0))
    return rebuilt(model, [*sizes.nodes, *nodes], constants=sizes.constants)


def _write_size(sizes: GraphWriter, dim: Dim, origins: dict[Dim, tuple[str, int]]) -> str:
    name = f"size_{dim}"
    if isinstance(dim, int):
        return sizes.constant(name, np.array([dim], np.int64))
    if name not in {node.name for node in sizes.nodes}:
        source, axis = origins[dim]
        sizes.node("Shape", [source], name, start=axis, end=axis + 1)
    return name


def _input_axes(model: ModelProto, shapes: dict[str, list[Dim]]) -> dict[Dim, tuple[str, int]]:
    """An input and its axis that have a size, by the name of the size."""
    axes: dict[Dim, tuple[str, int]] = {}
    for value in model.graph.input:
        for axis, dim in enumerate(shapes[value.name]):
            if isinstance(dim, str):
                axes[dim] = (value.name, axis)
    return axes


def _read_shape(node: NodeProto, shapes: dict[str, list[Dim]]) -> list[Dim]:
    """The shape that a Shape node gives; empty for other nodes and unknown ranks."""
    if node.op_type != "Shape" or node.attribute:
        return []
    return shapes.get(node.input[0], [])
