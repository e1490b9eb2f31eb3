from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from xopt.optimize.model import demo as demo_module
from xopt.optimize.model.demo import BASE_SHA256, base_folder, merge
from xopt.runtime import open_scorer
from xopt.runtime.data.agreement import first_stage_scores
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder


def test_the_base_is_the_one_that_the_adapter_was_trained_on() -> None:
    weights = base_folder() / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == BASE_SHA256


def test_another_base_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"another")
    monkeypatch.setattr(demo_module, "_from_package", lambda: tmp_path)
    with pytest.raises(BadInput, match=f"sha256 is not {BASE_SHA256}"):
        base_folder()


def test_merging_adds_the_low_rank_product_and_takes_whole_tensors() -> None:
    rng = np.random.default_rng(0)
    w, a, b, head = (
        rng.normal(size=s).astype(np.float32) for s in ((6, 4), (2, 4), (6, 2), (1, 4))
    )
    prefix = "base_model.model."
    adapter = {
        f"{prefix}bert.layer.query.lora_A.weight": a.astype(np.float16),
        f"{prefix}bert.layer.query.lora_B.weight": b.astype(np.float16),
        f"{prefix}classifier.weight": head.astype(np.float16),
    }
    merged = merge(
        {"layer.query.weight": w, "embeddings.position_ids": np.arange(3)}, adapter, scale=0.5
    )
    assert set(merged) == {"bert.layer.query.weight", "classifier.weight"}
    expected = w + 0.5 * (
        b.astype(np.float16).astype(np.float32) @ a.astype(np.float16).astype(np.float32)
    )
    assert np.allclose(merged["bert.layer.query.weight"], expected, atol=1e-6)
    assert merged["classifier.weight"].dtype == np.float32


@pytest.mark.slow
def test_the_demo_model_ranks_clearly_better_than_bm25(demo: ModelFolder) -> None:
    candidates = demo_candidates(queries=64)
    ranked = quality_by_query(
        candidates, open_scorer(demo.path, "onnx-fp32").score(candidates.pairs)
    )
    assert (
        ranked["ndcg10"].mean()
        > quality_by_query(candidates, first_stage_scores(candidates))["ndcg10"].mean() + 0.08
    )
