from __future__ import annotations

import pytest

from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import has_bf16
from xopt.runtime.scoring.backends.kinds import kind_of
from xopt.runtime.scoring.profile import profile


def test_every_runtime_tells_where_a_forwards_time_goes(
    demo: ModelFolder, docs: Candidates
) -> None:
    for variant in ("torch-fp32", "onnx-fp32", *(["openvino-bf16"] if has_bf16() else [])):
        found = profile(demo, variant, Plan(2, 1, 512), docs.pairs[:16])
        assert found is not None
        assert sum(found.shares.values()) == pytest.approx(1)
        assert next(iter(found.shares)) == "products"  # the model's largest part, whoever runs it
        assert all(found.shares[kind] > 0.001 for kind in ("products", "attention", "normalising"))
        assert found.threads == 1


def test_int8_shows_what_quantising_takes(tiny_copy: ModelFolder, docs: Candidates) -> None:
    made = quantize(tiny_copy, recipe_for(detect_target()), docs)
    found = profile(made, "onnx-int8", Plan(1, 1, 512), docs.pairs[:16])
    assert found is not None
    assert found.shares["quantising"] > 0


@pytest.mark.parametrize(
    ("operator", "weights", "kind"),
    [
        ("MatMulIntegerToFloat", True, "products"),
        ("FullyConnected", True, "products"),
        ("aten::addmm", True, "products"),
        ("MatMul", False, "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", True, "attention"),
        ("/encoder/MatMul_1,/encoder/Softmax", True, "attention"),
        ("SkipLayerNormalization", True, "normalising"),
        ("DynamicQuantizeLinear", True, "quantising"),
        ("BiasGelu", True, "activation"),
        ("Reshape", True, "moving"),
        ("Add", True, "elementwise"),
    ],
)
def test_operators_are_known_by_their_names(operator: str, weights: bool, kind: str) -> None:
    assert kind_of(operator, weights) == kind
