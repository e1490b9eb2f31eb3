from __future__ import annotations

import math
from pathlib import Path

import onnx
import pytest
from tiny import make_tiny

from xopt.optimize.export import export
from xopt.optimize.validate import Gate, validate
from xopt.runtime.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder


def test_trained_variants_pass_and_their_noise_is_shown(demo: ModelFolder, docs: Candidates) -> None:
    result = validate(demo, ["torch-fp32", "onnx-fp32", "onnx-int8"], docs)
    reference, exact, int8 = result.variants
    assert result.passed
    assert (reference.variant, exact.variant, int8.variant) == ("torch-fp32", "onnx-fp32", "onnx-int8")
    assert reference.agreement.max_difference == 0
    assert exact.agreement.tau > 0.99
    assert exact.agreement.max_difference < 1e-4
    assert exact.noise.max_difference < 1e-4
    assert 0.8 < int8.agreement.tau < 1
    assert int8.noise.max_difference < 1e-4
    assert set(result.first_stage) == set(reference.quality) == {"ndcg10", "mrr10"}
    assert (result.queries, result.pairs) == (8, 96)


def damage(folder: ModelFolder, file: str) -> ModelFolder:
    """Invert the head, and write the file into the manifest as if it were meant."""
    path = folder.path / file
    model = onnx.load(path)
    weights = [t for t in model.graph.initializer if t.name.startswith("classifier.weight")]
    weights[0].CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights[0]), weights[0].name))
    onnx.save(model, path)
    return folder.with_variant(folder.variant("onnx-int8"))


def test_a_broken_variant_fails_its_gates(tiny_copy: ModelFolder, docs: Candidates) -> None:
    broken = damage(tiny_copy, tiny_copy.variant("onnx-int8").file)
    result = validate(broken, ["onnx-int8"], docs)
    reference, int8 = result.variants
    assert reference.passed
    assert not int8.passed
    assert not result.passed
    assert int8.agreement.tau < 0
    assert {g.gate.measure for g in int8.gates if not g.passed} >= {"tau"}


@pytest.mark.parametrize(("bound", "passed"), [(0.0, True), (1.0, False)])
def test_gates_are_bounds(tiny: ModelFolder, docs: Candidates, bound: float, passed: bool) -> None:
    result = validate(tiny, ["onnx-int8"], docs, [Gate("tau", bound)])
    assert result.variants[1].passed is passed


def test_without_qrels_there_is_agreement_and_no_quality(tiny: ModelFolder, docs: Candidates) -> None:
    result = validate(tiny, ["onnx-fp32"], Candidates("plain", docs.rows[:24]))
    assert result.first_stage == result.variants[1].quality == {}
    assert [g.gate.measure for g in result.variants[1].gates] == ["tau", "top10"]
    assert math.isclose(result.variants[1].agreement.top10, 1.0)


def test_models_of_several_labels_and_missing_variants_are_refused(
    tmp_path: Path, tiny: ModelFolder, docs: Candidates
) -> None:
    with pytest.raises(BadInput, match="no variant 'onnx-int4'"):
        validate(tiny, ["onnx-int4"], docs)
    labels = export(str(make_tiny(tmp_path / "model", labels=3)), tmp_path / "out")
    with pytest.raises(BadInput, match="3 labels"):
        validate(labels, ["onnx-fp32"], docs)
