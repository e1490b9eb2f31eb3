from __future__ import annotations

import numpy as np
import onnx
import pytest

from xopt.optimize.quantize import FP32_FILE, TARGETS, detect_target, quantize, recipe_for, token_matmuls
from xopt.runtime import open_scorer
from xopt.runtime.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import cpu_flags, machine_name


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_names_its_file_and_keeps_its_recipe(tiny_copy: ModelFolder, target: str) -> None:
    made = quantize(tiny_copy, recipe_for(target))
    variant = ModelFolder.open(tiny_copy.path).variant("onnx-int8")
    assert variant == made.variant("onnx-int8")
    assert variant.file == f"onnx/model_qint8_{target}.onnx"
    assert variant.recipe == {
        "scheme": "dynamic",
        "target": target,
        "weight_bits": 7 if target in {"avx2", "avx512"} else 8,
        "per_channel": True,
    }
    assert np.isfinite(open_scorer(made.path, "onnx-int8").score([("a query", "a text")])).all()


def weights_of(made: ModelFolder) -> list[np.ndarray]:
    graph = onnx.load(made.path / made.variant("onnx-int8").file).graph
    return [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims]


def test_seven_bits_where_eight_would_saturate(tiny_copy: ModelFolder) -> None:
    assert max(np.abs(w.astype(int)).max() for w in weights_of(quantize(tiny_copy, recipe_for("avx512_vnni")))) > 64
    assert max(np.abs(w.astype(int)).max() for w in weights_of(quantize(tiny_copy, recipe_for("avx2")))) <= 64


def test_tokens_are_multiplied_in_int8_and_the_rest_in_float(tiny: ModelFolder) -> None:
    chosen = token_matmuls(tiny.path / FP32_FILE)
    assert len(chosen) == 6 + 2  # query, key, value, attention output, up and down; of the last layer key and value
    graph = onnx.load(tiny.path / tiny.variant("onnx-int8").file).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulInteger") == 8
    # Attention's scores and mean of values in two layers, what sees one row in the last, pooler and classifier:
    assert kinds.count("MatMul") + kinds.count("Gemm") == 2 * 2 + 4 + 2


def test_stock_int8_scores_a_pair_by_its_batch(demo: ModelFolder, docs: Candidates) -> None:
    alone = open_scorer(demo.path, "onnx-int8", plan=Plan(1, 1, 1)).score(docs.pairs)
    together = open_scorer(demo.path, "onnx-int8", plan=Plan(1, 1, 4096)).score(docs.pairs)
    assert np.abs(alone - together).max() > 1e-3  # what `validate` reports as noise


def test_quantising_again_replaces_the_variant_and_its_plans(tiny_copy: ModelFolder) -> None:
    plan = Plan(1, 1, 512)
    tiny_copy.write(plans={machine_name(): {"onnx-int8": plan, "onnx-fp32": plan}})
    made = quantize(ModelFolder.open(tiny_copy.path), recipe_for("avx2"))
    assert made.manifest.plans == {machine_name(): {"onnx-fp32": plan}}
    assert list(made.manifest.variants).count("onnx-int8") == 1


def test_the_target_is_detected_from_the_processor() -> None:
    if not any(target.flags <= cpu_flags() for target in TARGETS.values()):
        pytest.skip("this operating system does not list instruction sets")
    assert TARGETS[detect_target()].flags <= cpu_flags()


def test_an_unknown_target_and_a_damaged_graph_are_refused(tiny_copy: ModelFolder) -> None:
    with pytest.raises(BadInput, match="target 'avx9': unknown; one of avx512_vnni"):
        recipe_for("avx9")
    (tiny_copy.path / FP32_FILE).write_bytes(b"damaged")
    before = sorted(p.name for p in (tiny_copy.path / "onnx").iterdir())
    with pytest.raises(BadInput, match="sha256 differs"):
        quantize(tiny_copy, recipe_for("avx512_vnni"))
    assert sorted(p.name for p in (tiny_copy.path / "onnx").iterdir()) == before
