from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.texts import shortened
from onnx import numpy_helper

from xopt.optimize.int8.calibrate import calibration_pairs
from xopt.optimize.judge.statistics import FAILED, PASSED, Gate
from xopt.optimize.judge.verdict import judge
from xopt.optimize.quantize import detect_target, prepare, quantize, recipe_for
from xopt.optimize.steer import steer
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import Candidates, demo_candidates
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.folder import ONNX_FILE, ModelFolder

LAYER, CHANNELS, FACTOR = 2, slice(0, 384, 48), 200.0


@pytest.fixture(scope="module")
def queries() -> Candidates:
    return shortened(demo_candidates(queries=12, depth=10))


@pytest.fixture(autouse=True)
def fewer_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the pairs: the outliers stand out on any."""
    monkeypatch.setattr("xopt.optimize.steer.HARM_PAIRS", 24)
    monkeypatch.setattr("xopt.optimize.steer.SPEED_PAIRS", 24)
    monkeypatch.setattr("xopt.optimize.steer.SPEED_ROUNDS", 3)


def with_outliers(folder: ModelFolder) -> ModelFolder:
    """A few channels of a layer's values many times as large, and what reads them as much
    smaller: the same in FP32.
    """
    model = onnx.load(folder.path / ONNX_FILE)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    read = {node.name: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    layer = f"/bert/encoder/layer.{LAYER}/attention"
    value = read[f"{layer}/self/value/MatMul"]
    bias = f"bert.encoder.layer.{LAYER}.attention.self.value.bias"
    output = read[f"{layer}/output/dense/MatMul"]
    for name, index, factor in (
        (value, np.s_[:, CHANNELS], FACTOR),
        (bias, np.s_[CHANNELS], FACTOR),
        (output, np.s_[CHANNELS], 1 / FACTOR),
    ):
        array = numpy_helper.to_array(weights[name]).copy()
        array[index] *= factor
        weights[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, folder.path / ONNX_FILE)
    return folder.with_variant(folder.variant("onnx-fp32"))


@pytest.mark.slow
def test_a_model_with_outliers_fails_in_int8_and_passes_after_steering(
    demo_copy: ModelFolder, queries: Candidates
) -> None:
    gate = Gate("tau", 0.93)
    before = open_scorer(demo_copy.path, "onnx-fp32").score(queries.pairs)
    folder = with_outliers(demo_copy)
    expected = open_scorer(folder.path, "onnx-fp32").score(queries.pairs)
    assert np.abs(before - expected).max() < 1e-4
    plain = recipe_for(detect_target())
    prepared = prepare(folder, plain, calibration_pairs(queries))
    scores = open_scorer(quantize(folder, plain, prepared=prepared).path, "onnx-int8").score(
        queries.pairs
    )
    assert judge(queries, expected, scores, [gate], name="plain").verdict == FAILED
    steered = steer(folder, prepared, plain, queries, [gate])
    assert f"/bert/encoder/layer.{LAYER}/attention/output/dense/MatMul" in steered.recipe.floats
    made = quantize(folder, steered.recipe, prepared=prepared)
    assert made.variant("onnx-int8").recipe["floats"] == list(steered.recipe.floats)
    scores = open_scorer(made.path, "onnx-int8").score(queries.pairs)
    assert judge(queries, expected, scores, [gate], name="steered").verdict == PASSED


@pytest.mark.slow
def test_a_gate_that_holds_at_once_leaves_nothing_in_float(
    demo: ModelFolder, queries: Candidates
) -> None:
    recipe = recipe_for(detect_target())
    prepared = prepare(demo, recipe, calibration_pairs(queries.head(24)))
    steered = steer(demo, prepared, recipe, queries, [Gate("tau", -1.0)])
    assert (len(steered.steps), steered.recipe.floats, steered.harms) == (1, (), ())


def test_what_cannot_be_measured_is_said(tiny_copy: ModelFolder, queries: Candidates) -> None:
    recipe = recipe_for(detect_target())
    prepared = prepare(tiny_copy, recipe, calibration_pairs(queries))
    with pytest.raises(BadInput, match="top10 cannot be measured on so few candidates a query"):
        steer(tiny_copy, prepared, recipe, queries, [Gate("top10", 0.9)])


def test_where_nothing_passes_nothing_is_changed(
    tiny_copy: ModelFolder, queries: Candidates, tmp_path: Path
) -> None:
    before = sorted((file, file.stat().st_mtime_ns) for file in tiny_copy.path.rglob("*"))
    recipe = recipe_for(detect_target())
    prepared = prepare(tiny_copy, recipe, calibration_pairs(queries))
    with pytest.raises(GateFailed, match=r"tau .* asked 1"):
        steer(tiny_copy, prepared, recipe, queries, [Gate("tau", 1.0)])
    assert sorted((file, file.stat().st_mtime_ns) for file in tiny_copy.path.rglob("*")) == before
