"""A scorer needs its folder no more once it is open."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import pytest
from helpers.tiny import make_tiny

from xopt.optimize.export import export
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime import CrossEncoder, open_scorer
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder, Plan

VARIANTS = ["onnx-fp32", "onnx-int8", "openvino-fp32", "torch-fp32", "torch-varlen-fp32"]
PLANS = [Plan(1, 1, 512), Plan(2, 1, 512)]
TOO_FEW_THREADS = "have the threads of one caller"

Change = Callable[[ModelFolder, Candidates], object]


def remove(folder: ModelFolder, _: Candidates) -> None:
    shutil.rmtree(folder.path)


def export_another(folder: ModelFolder, _: Candidates) -> None:
    source = make_tiny(folder.path.with_name("another"), num_hidden_layers=1)
    export(str(source), folder.path, force=True)


def quantize_again(folder: ModelFolder, calibration: Candidates) -> None:
    others = calibration.between(0, 2)  # so that its scales are others
    before = (folder.path / folder.variant("onnx-int8").file).read_bytes()
    quantize(folder, recipe_for(detect_target()), others)
    assert (folder.path / folder.variant("onnx-int8").file).read_bytes() != before


@pytest.mark.parametrize("change", [remove, export_another, quantize_again])
def test_what_is_open_stays_whole_whatever_becomes_of_its_folder(
    tiny_copy: ModelFolder,
    docs: Candidates,
    calibration: Candidates,
    caplog: pytest.LogCaptureFixture,
    change: Change,
) -> None:
    pairs = docs.pairs[:20]
    cases = [(variant, plan) for variant in VARIANTS for plan in PLANS]
    scorers = [open_scorer(tiny_copy, variant, plan=plan) for variant, plan in cases]
    encoder = CrossEncoder(tiny_copy.path, "onnx-fp32", plan=PLANS[1])
    expected = [scorer.score(pairs) for scorer in scorers]
    change(tiny_copy, calibration)
    for scorer, scores in zip(scorers, expected, strict=True):
        assert scorer.score(pairs[:1]) == pytest.approx(scores[:1], abs=1e-5)
        assert np.array_equal(scorer.score(pairs), scores)
    query, text = pairs[0]
    assert [result["corpus_id"] for result in encoder.rank(query, [text])] == [0]
    assert TOO_FEW_THREADS not in caplog.text


@pytest.mark.parametrize("variant", ["onnx-fp32", "openvino-fp32"])
def test_a_file_that_is_overwritten_is_not_read_again_and_that_is_said_once(
    tiny_copy: ModelFolder, docs: Candidates, caplog: pytest.LogCaptureFixture, variant: str
) -> None:
    scorer = open_scorer(tiny_copy, variant, plan=Plan(2, 1, 512))
    expected = scorer.score(docs.pairs)
    (tiny_copy.path / "onnx/model.onnx").write_bytes(b"another")
    for _ in range(2):
        assert scorer.score(docs.pairs[:1]) == pytest.approx(expected[:1], abs=1e-5)
    assert caplog.text.count(TOO_FEW_THREADS) == 1
    assert "onnx/model.onnx: removed or changed since it was opened" in caplog.text
