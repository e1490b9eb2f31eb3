"""Shapes of a graph's tensors, as far as they can be known before it runs."""

from __future__ import annotations

import onnx
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

__all__ = ["Dim", "tensor_shapes"]

Dim = int | str | None  # a number, a name for one that is the same wherever it stands, or unknown


def tensor_shapes(model: onnx.ModelProto) -> dict[str, list[Dim]]:
    """The shape of each tensor whose rank is known, by name."""
    inferred = SymbolicShapeInference.infer_shapes(model, auto_merge=True).graph
    shapes: dict[str, list[Dim]] = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in [*inferred.value_info, *inferred.input, *inferred.output]:
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims]
    return shapes
