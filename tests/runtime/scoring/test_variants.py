from __future__ import annotations

import pytest

from xopt.optimize.quantize import quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import has_bf16
from xopt.runtime.scoring import variants as module
from xopt.runtime.scoring.variants import variants_on


def test_each_device_has_the_variants_that_make_sense_on_it(tiny: ModelFolder) -> None:
    on_cpu = variants_on(tiny, "cpu")
    assert on_cpu == [
        "torch-fp32",
        *(["torch-bf16"] if has_bf16() else []),
        "onnx-fp32",
        "openvino-fp32",
        *(["openvino-bf16"] if has_bf16() else []),
        "onnx-int8",
    ]
    on_gpu = [v for v in variants_on(tiny, "cuda") if not v.startswith("onnx")]
    assert on_gpu == [
        "torch-fp32",
        "torch-fp16",
        "torch-bf16",
        "torch-varlen-fp16",
        "torch-varlen-bf16",
    ]
    assert "onnx-int8" not in variants_on(tiny, "cuda")


def test_what_a_gpu_cannot_run_is_left_out_with_a_warning(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("xopt.runtime.scoring.backends.onnx.has_cuda", lambda: False)
    monkeypatch.setattr("xopt.runtime.scoring.backends.torch.has_flash", lambda: False)
    assert variants_on(tiny, "cuda") == ["torch-fp32", "torch-fp16", "torch-bf16"]
    assert "torch-varlen-fp16 is left out: what it needs on a GPU is not installed" in caplog.text
    assert "onnx-fp32 is left out" in caplog.text


def test_int8_made_for_another_processor_is_not_run_where_its_sums_overflow(
    tiny_copy: ModelFolder,
    docs: Candidates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = quantize(tiny_copy, recipe_for("avx512_vnni"), docs)
    monkeypatch.setattr(module, "saturates", lambda: True)
    assert "onnx-int8" not in variants_on(made, "cpu")
    assert "onnx-int8 is left out: made for avx512_vnni" in caplog.text
    with pytest.raises(
        BadInput, match="onnx-int8: made for avx512_vnni: its 8-bit sums overflow on this processor"
    ):
        open_scorer(made.path, "onnx-int8")
    monkeypatch.setattr(module, "saturates", lambda: False)
    assert "onnx-int8" in variants_on(made, "cpu")
    assert len(open_scorer(made.path, "onnx-int8").score(docs.pairs[:2])) == 2
