from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.graphs import graph_of, logits, optimised, session_of
from helpers.tiny import make_tiny

from xopt.optimize.graph.rms_norm import divide_by_root

IDS = np.random.default_rng(0).integers(5, 40, (3, 16))
# Two in each layer and one behind them; Qwen3 has two more in a layer, for queries and keys.
NORMS = {"llama": 5, "qwen2": 5, "qwen3": 9, "bert": 0}


@pytest.mark.parametrize("architecture", NORMS)
def test_every_norm_is_one_operator_and_no_score_changes(tmp_path: Path, architecture: str) -> None:
    graph = graph_of(make_tiny(tmp_path / "model", architecture))
    before = logits(session_of(graph), IDS, np.ones_like(IDS))
    divided, count = divide_by_root(graph)
    onnx.checker.check_model(divided)
    assert count == NORMS[architecture]
    session, kinds = optimised(divided, tmp_path)
    assert np.abs(logits(session, IDS, np.ones_like(IDS)) - before).max() < 1e-5
    assert kinds.count("SimplifiedLayerNormalization") == count


def test_a_root_that_belongs_to_no_norm_stays() -> None:
    make = onnx.helper.make_node
    value = onnx.helper.make_tensor_value_info
    nodes = [
        make("Sqrt", ["x"], ["root"]),
        make("Reciprocal", ["root"], ["inverse"]),
        make("Mul", ["x", "inverse"], ["y"]),
    ]
    ends = [[value(name, onnx.TensorProto.FLOAT, [None])] for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "roots", *ends)
    same, count = divide_by_root(onnx.helper.make_model(graph))
    assert count == 0
    assert [node.op_type for node in same.graph.node] == ["Sqrt", "Reciprocal", "Mul"]
