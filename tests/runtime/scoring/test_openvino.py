from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.tiny import make_tiny

from xopt.optimize.export import export
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.bench.strategy import STRATEGIES, ScorerSpec
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import has_module
from xopt.runtime.scoring.variants import variants_on


@pytest.fixture
def static(tiny_copy: ModelFolder, docs: Candidates) -> ModelFolder:
    return quantize(tiny_copy, recipe_for(detect_target(), "static"), docs)


def test_static_int8_leaves_the_hot_neurons_in_float(static: ModelFolder) -> None:
    variant = static.variant("openvino-int8")
    assert (variant.backend, variant.file) == (
        "openvino",
        f"onnx/model_qint8_{detect_target()}_static.onnx",
    )
    graph = onnx.load(static.path / variant.file).graph
    integers = {
        t.name
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
    }
    # the second product of one block is in two parts, of which one is in float
    assert len(integers) == 6 + 1
    assert not any(node.domain == "com.microsoft" for node in graph.node)


def test_openvino_int8_is_close_to_float_and_depends_on_the_pair_alone(
    static: ModelFolder, docs: Candidates
) -> None:
    expected = open_scorer(static.path, "onnx-fp32").score(docs.pairs)
    alone = open_scorer(static.path, "openvino-int8", plan=Plan(1, 1, 1)).score(docs.pairs)
    together = open_scorer(static.path, "openvino-int8", plan=Plan(3, 1, 512)).score(docs.pairs)
    assert np.abs(alone - together).max() < 1e-4
    assert 0 < np.abs(alone - expected).mean() < 0.1 * max(1.0, float(expected.std()))


def test_other_strategies_batch_as_sentence_transformers_does(
    static: ModelFolder, docs: Candidates
) -> None:
    planned = open_scorer(static.path, "openvino-int8").score(docs.pairs)
    for strategy in STRATEGIES:
        scorer = ScorerSpec(str(static.path), "openvino-int8", strategy, threads=2).open()
        assert np.abs(scorer.score(docs.pairs) - planned).max() < 1e-4


def test_a_damaged_graph_and_a_gpu_are_said(static: ModelFolder) -> None:
    with pytest.raises(BadInput, match="device 'cuda': openvino-int8 runs on a CPU only"):
        open_scorer(static.path, "openvino-int8", device="cuda")
    file = static.variant("openvino-int8").file
    (static.path / file).write_bytes(b"damaged")
    with pytest.raises(BadInput, match="sha256 differs"):
        open_scorer(static.path, "openvino-int8")
    with pytest.raises(BadInput, match="OpenVINO cannot open it"):
        open_scorer(static.with_variant(static.variant("openvino-int8")).path, "openvino-int8")


@pytest.mark.parametrize("variant", ["openvino-fp32", "openvino-bf16", "openvino-int8"])
def test_the_first_forward_of_a_shape_is_right(static: ModelFolder, variant: str) -> None:
    expected, scorer = (
        open_scorer(static.path, "onnx-fp32"),
        open_scorer(static.path, variant, plan=Plan(2, 1, 4096)),
    )
    for pairs in (1, 1, 2, 8, 16, 30):
        for words in (3, 9, 20):
            asked = [("data", f"{'the of ' * words}{i % 10}") for i in range(pairs)]
            limit = 1e-4 if variant == "openvino-fp32" else 0.5  # random weights; NaN is no less
            assert np.abs(scorer.score(asked) - expected.score(asked)).max() < limit


def test_a_graph_that_openvino_does_not_take_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not has_module("optimum.exporters.onnx"):
        pytest.skip("OpenVINO takes the graphs of torch's exporter")
    monkeypatch.setattr("xopt.runtime.scoring.variants.has_bf16", lambda: True)
    made = export(
        str(make_tiny(tmp_path / "model", "deberta")), tmp_path / "out", exporter="optimum"
    )
    assert {"openvino-fp32", "openvino-bf16"} <= set(made.manifest.variants)
    assert variants_on(made, "cpu") == ["torch-fp32", "torch-bf16", "onnx-fp32"]
    assert "openvino-bf16 is left out" in caplog.text
    assert "OpenVINO cannot open it (" in caplog.text
    assert "OpenVINO cannot open it ()" not in caplog.text
