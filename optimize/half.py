"""Half precision of the ONNX graph, for CUDAExecutionProvider."""

from __future__ import annotations

import warnings

from onnxruntime.transformers.float16 import convert_float_to_float16

from xopt.optimize.graph.attention import unfused
from xopt.optimize.graph.shapes import with_types
from xopt.optimize.graph.structure import read_graph, write_graph
from xopt.runtime.folder import ONNX_FILE, ModelFolder, Variant
from xopt.runtime.progress import progress

__all__ = ["FP16", "halve"]

FP16 = "onnx-fp16"
FP16_FILE = "onnx/model_fp16.onnx"


def halve(folder: ModelFolder) -> ModelFolder:
    """Add the variant onnx-fp16, made from `onnx/model.onnx`, or replace it.

    Its logits stay FP32. Raises BadInput where the FP32 graph is missing or damaged.
    """
    model = with_types(unfused(read_graph(folder.checked(ONNX_FILE))))
    with progress("making half precision"), warnings.catch_warnings():
        # The converter warns of each constant that FP16 rounds to 0 or clips; the gates judge that.
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    variant = Variant(FP16, "onnx", "fp16", FP16_FILE, {"converter": "onnxruntime.transformers"})
    return folder.with_variant(variant, lambda file: write_graph(half, file))
