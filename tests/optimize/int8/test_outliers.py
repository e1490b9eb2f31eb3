from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from helpers.tiny import make_tiny

from xopt.optimize.export import export
from xopt.optimize.graph.attention import unfused
from xopt.optimize.int8.outliers import find_blocks, split_outliers
from xopt.optimize.quantize import token_matmuls
from xopt.runtime.folder import ONNX_FILE


def run(model: onnx.ModelProto, ids: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }
    logits: np.ndarray = session.run(
        ["logits"], {n.name: values[n.name] for n in session.get_inputs()}
    )[0]
    return logits


@pytest.mark.parametrize(
    ("architecture", "blocks"), [("bert", 1), ("roberta", 1), ("distilbert", 1), ("modernbert", 0)]
)
def test_the_split_changes_no_score_and_takes_the_hottest(
    tmp_path: Path, architecture: str, blocks: int
) -> None:
    made = export(str(make_tiny(tmp_path / "model", architecture)), tmp_path / "out")
    model = unfused(onnx.load(made.path / ONNX_FILE))
    found = find_blocks(model, token_matmuls(model))
    # of two layers: the last one's sees one row a pair; ModernBERT's are gated
    assert len(found) == blocks
    peak = np.random.default_rng(0).random(64)
    split = split_outliers(model, found, {block.activation: peak for block in found}, 0.25)
    onnx.checker.check_model(split)
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in (*model.graph.initializer, *split.graph.initializer)
    }
    for block in found:
        whole = block.second.input[1]
        hottest = np.sort(np.argsort(-peak)[:16])
        assert (weights[f"{whole}/hot"] == weights[whole][hottest]).all()
        assert weights[f"{whole}/cold"].shape[0] == 48
    ids = np.random.default_rng(1).integers(5, 40, (3, 20))
    assert np.abs(run(split, ids) - run(model, ids)).max() < 1e-5
