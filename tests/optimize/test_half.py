from __future__ import annotations

import numpy as np
import onnx

from xopt.optimize.half import FP16, halve
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder


def test_the_half_graph_has_half_the_weights_and_ranks_the_same(
    demo_copy: ModelFolder, docs: Candidates
) -> None:
    made = halve(demo_copy)
    kept = ModelFolder.open(demo_copy.path).variant(FP16)
    assert kept == made.variant(FP16)
    full, half = (made.path / made.variant(name).file for name in ("onnx-fp32", FP16))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    kinds = {tensor.data_type for tensor in onnx.load(half).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    pairs = docs.pairs[:32]  # on a CPU onnxruntime computes in FP32 and rounds in between
    expected, scores = (open_scorer(made.path, name).score(pairs) for name in ("onnx-fp32", FP16))
    assert scores.dtype == np.float32
    assert 1e-5 < np.abs(scores - expected).max() < 0.05
    assert halve(made).manifest.variants.keys() == made.manifest.variants.keys()
