"""Shapes of a graph's tensors, as far as they can be known before it runs."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from xopt.optimize.graph.structure import SMALL, rebuilt

__all__ = ["Dim", "shapes_from_inputs", "tensor_shapes", "with_types"]

Dim = int | str | None  # a number, a name for one that is the same wherever it stands, or unknown


def tensor_shapes(model: onnx.ModelProto) -> dict[str, list[Dim]]:
    """The shape of each tensor whose rank is known, by name."""
    inferred = _infer(_without_weights(model)).graph
    shapes: dict[str, list[Dim]] = {
        tensor.name: list(tensor.dims) for tensor in model.graph.initializer
    }
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = [
                d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims
            ]
    return shapes


def with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the types of its tensors written in, and their shapes as far as onnx
    infers them.
    """
    known = onnx.shape_inference.infer_shapes(_without_weights(model)).graph.value_info
    return rebuilt(model, model.graph.node, model.graph.initializer, known)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, to which weights are inputs: their values tell no shape, and may be more
    than it can hold.
    """
    weights = [tensor for tensor in model.graph.initializer if math.prod(tensor.dims) > SMALL]
    made = rebuilt(
        model, model.graph.node, (t for t in model.graph.initializer if math.prod(t.dims) <= SMALL)
    )
    made.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights
    )
    return made


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        with (
            TemporaryDirectory() as scratch,
            _chdir(scratch),
            _quiet(),
        ):  # where it fails it leaves a file in the working directory
            inferred: onnx.ModelProto = SymbolicShapeInference.infer_shapes(model, auto_merge=True)
        return inferred
    # it raises nothing more special; what depends on a shape that is not known is left alone
    except Exception:
        return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal which sizes it cannot compare."""
    logger = logging.getLogger(SymbolicShapeInference.__module__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _chdir(folder: str) -> Iterator[None]:
    """contextlib.chdir, which Python 3.10 lacks."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def shapes_from_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, where the shape of a tensor is put together from the inputs' shapes as far
    as it is known.

    A tensor whose shape was read could not be narrowed without changing what is read.
    """
    shapes = tensor_shapes(model)
    inputs = [value.name for value in model.graph.input]
    origin = {
        dim: (name, axis)
        for name in inputs
        for axis, dim in enumerate(shapes[name])
        if isinstance(dim, str)
    }
    rest: list[onnx.NodeProto] = []
    sizes: dict[str, onnx.NodeProto] = {}
    numbers: set[int] = set()
    for node in model.graph.node:
        dims = (
            shapes.get(node.input[0], [None])
            if node.op_type == "Shape" and not node.attribute
            else [None]
        )
        if len(dims) < 3 or not all(isinstance(dim, int) or dim in origin for dim in dims):
            rest.append(node)
            continue
        numbers |= {dim for dim in dims if isinstance(dim, int)}
        for dim in {dim for dim in dims if isinstance(dim, str)} - set(sizes):
            name, axis = origin[dim]
            sizes[dim] = helper.make_node(
                "Shape", [name], [f"size_{dim}"], f"size_{dim}", start=axis, end=axis + 1
            )
        rest.append(
            helper.make_node("Concat", [f"size_{d}" for d in dims], node.output, node.name, axis=0)
        )
    known = [
        numpy_helper.from_array(np.array([number], np.int64), f"size_{number}")
        for number in sorted(numbers)
    ]
    return rebuilt(model, [*sizes.values(), *rest], [*model.graph.initializer, *known])
