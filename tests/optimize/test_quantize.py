from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.tiny import make_tiny

from xopt.optimize.export import export
from xopt.optimize.graph.attention import unfused
from xopt.optimize.quantize import (
    SCHEMES,
    TARGETS,
    detect_target,
    quantize,
    recipe_for,
    token_matmuls,
)
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ONNX_FILE, ModelFolder, Plan
from xopt.runtime.machine import cpu_flags, machine_name


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_names_its_file_and_keeps_its_recipe(
    tiny_copy: ModelFolder, docs: Candidates, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = quantize(tiny_copy, recipe_for(target), docs)
    variant = ModelFolder.open(tiny_copy.path).variant("onnx-int8")
    assert variant == made.variant("onnx-int8")
    assert variant.file == f"onnx/model_qint8_{target}.onnx"
    assert {k: v for k, v in variant.recipe.items() if k != "calibrated_with"} == {
        "scheme": "per-token",
        "target": target,
        "weight_bits": 7 if target in {"avx2", "avx512"} else 8,
        "smoothing": 0.65,
        "hot": 1 / 16,
        "floats": [],
    }
    # it runs, even where it should not
    monkeypatch.setattr("xopt.runtime.scoring.variants.saturates", lambda: False)
    assert np.isfinite(open_scorer(made.path, "onnx-int8").score([("a query", "a text")])).all()


# which always has seven
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "portable"])
@pytest.mark.parametrize(("target", "largest"), [("avx512_vnni", 127), ("avx2", 64)])
def test_seven_bits_where_eight_would_saturate(
    tiny_copy: ModelFolder, docs: Candidates, scheme: str, target: str, largest: int
) -> None:
    made = quantize(tiny_copy, recipe_for(target, scheme), docs)
    graph = onnx.load(made.path / made.variant(SCHEMES[scheme]).file).graph
    arrays = [
        onnx.numpy_helper.to_array(t)
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.INT8
    ]
    assert largest - 1 <= max(np.abs(array.astype(int)).max() for array in arrays) <= largest


def test_tokens_are_multiplied_in_int8_and_the_rest_in_float(tiny: ModelFolder) -> None:
    # none of the last layer's
    assert len(token_matmuls(unfused(onnx.load(tiny.path / ONNX_FILE)))) == 6
    graph = unfused(onnx.load(tiny.path / tiny.variant("onnx-int8").file)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 6 + 2  # one block's neurons are in two parts
    # what query, key and value read is quantised once
    assert kinds.count("QuantizeLinear") == 4 + 1
    # Attention's scores and mean of values in two layers, the weights between which the last has
    # them, what else sees one row there, pooler and classifier:
    assert kinds.count("MatMul") + kinds.count("Gemm") == 2 * 2 + 2 + 4 + 2


def test_per_token_int8_agrees_far_better_than_stock_int8(
    demo: ModelFolder, docs: Candidates, tmp_path: Path
) -> None:
    both = ModelFolder.open(shutil.copytree(demo.path, tmp_path / "both"))
    both = quantize(both, recipe_for(detect_target(), "stock"))
    pairs = docs.pairs[::2]
    expected = open_scorer(both.path, "onnx-fp32").score(pairs)
    stock, ours = (
        np.abs(open_scorer(both.path, variant).score(pairs) - expected).mean()
        for variant in ("onnx-int8-stock", "onnx-int8")
    )
    assert ours < 0.7 * stock


def test_only_stock_int8_scores_a_pair_by_its_batch(
    tiny_copy: ModelFolder, docs: Candidates
) -> None:
    made = quantize(tiny_copy, recipe_for(detect_target(), "stock"))
    differences = {}
    for variant in ("onnx-int8-stock", "onnx-int8"):
        alone = open_scorer(made.path, variant, plan=Plan(1, 1, 1)).score(docs.pairs)
        together = open_scorer(made.path, variant, plan=Plan(1, 1, 4096)).score(docs.pairs)
        differences[variant] = np.abs(alone - together).max()
    assert differences["onnx-int8-stock"] > 1e-3  # what `validate` reports as noise
    assert differences["onnx-int8"] < 1e-4


def test_an_activation_that_is_never_negative_has_all_its_steps_above_zero(
    tmp_path: Path, docs: Candidates
) -> None:
    made = export(str(make_tiny(tmp_path / "model", hidden_act="relu")), tmp_path / "out")
    made = quantize(made, recipe_for(detect_target()), docs)
    names = {
        t.name for t in onnx.load(made.path / made.variant("onnx-int8").file).graph.initializer
    }
    assert "int8/zero_1" in names
    expected, scores = (
        open_scorer(made.path, v).score(docs.pairs) for v in ("onnx-fp32", "onnx-int8")
    )
    assert 0 < np.abs(scores - expected).mean() < 0.2


def test_quantising_again_replaces_the_variant_and_its_plans(
    tiny_copy: ModelFolder, docs: Candidates
) -> None:
    plan = Plan(1, 1, 512)
    plans = {machine_name(): {"onnx-int8": plan, "onnx-fp32": plan}}
    tiny_copy.write(lambda manifest: replace(manifest, plans=plans))
    made = quantize(ModelFolder.open(tiny_copy.path), recipe_for("avx2"), docs)
    assert made.manifest.plans == {machine_name(): {"onnx-fp32": plan}}
    assert list(made.manifest.variants).count("onnx-int8") == 1


def test_the_target_is_detected_from_the_processor() -> None:
    if not cpu_flags().intersection(TARGETS.values()):
        pytest.skip("this operating system does not list instruction sets")
    assert TARGETS[detect_target()] in cpu_flags()


def test_an_unknown_target_and_a_damaged_graph_are_refused(tiny_copy: ModelFolder) -> None:
    with pytest.raises(BadInput, match="target 'avx9': unknown; one of avx512_vnni"):
        recipe_for("avx9")
    (tiny_copy.path / ONNX_FILE).write_bytes(b"damaged")
    before = sorted(p.name for p in (tiny_copy.path / "onnx").iterdir())
    with pytest.raises(BadInput, match="sha256 differs"):
        quantize(tiny_copy, recipe_for("avx512_vnni"))
    assert sorted(p.name for p in (tiny_copy.path / "onnx").iterdir()) == before


def test_a_variant_that_cannot_be_replaced_stays_whole(
    tiny_copy: ModelFolder, docs: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in tiny_copy.path.rglob("*") if path.is_file()}
    for where in ("sha256_of", "locked", "new_file"):
        with monkeypatch.context() as patch:
            patch.setattr(f"xopt.runtime.folder.{where}", stopped)
            with pytest.raises(KeyboardInterrupt):
                quantize(tiny_copy, recipe_for(detect_target(), "stock"))
            with pytest.raises(KeyboardInterrupt):
                quantize(tiny_copy, recipe_for(detect_target()), docs.head(24))
        assert {
            path: path.read_bytes() for path in tiny_copy.path.rglob("*") if path.is_file()
        } == before
    assert np.isfinite(open_scorer(tiny_copy.path, "onnx-int8").score(docs.pairs[:2])).all()


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_file_of_another_target_goes_and_what_makes_a_damaged_one_is_said(
    tiny_copy: ModelFolder, docs: Candidates
) -> None:
    for target in ("avx512_vnni", "avx2"):
        made = quantize(ModelFolder.open(tiny_copy.path), recipe_for(target), docs.head(24))
        (file,) = (tiny_copy.path / "onnx").glob("model_q*")
        assert file.name == f"model_qint8_{target}.onnx"
        assert [name for name in made.manifest.files if "model_q" in name] == [f"onnx/{file.name}"]
    file.write_bytes(b"damaged")
    with pytest.raises(
        BadInput, match=r"sha256 differs .*; make it with `xopt quantize .* --int8`"
    ):
        open_scorer(tiny_copy.path, "onnx-int8")
