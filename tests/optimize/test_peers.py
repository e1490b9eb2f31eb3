from __future__ import annotations

import numpy as np
import pytest

from xopt.optimize.peers import make_peers
from xopt.optimize.quantize import detect_target
from xopt.runtime.bench.bench import Case, bench
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.bench.strategy import ScorerSpec
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import has_module


@pytest.fixture(scope="module")
def peers(tiny: ModelFolder, docs: Candidates, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    out = tmp_path_factory.mktemp("peers") / "model"
    if not has_module("optimum.onnxruntime"):
        with pytest.raises(BadInput, match="sentence-transformers has no ONNX of it to compare with"):
            make_peers(tiny, docs, detect_target(), out)
        pytest.skip("optimum is not installed here")
    return make_peers(tiny, docs, detect_target(), out)


def test_peers_are_sentence_transformers_own_exports(tiny: ModelFolder, peers: ModelFolder, docs: Candidates) -> None:
    assert list(peers.manifest.variants)[:2] == ["st-onnx", "st-onnx-qint8"]
    expected = ReferenceScorer(tiny, tiny.variant("torch-fp32"), threads=2).score(docs.pairs)
    for variant in peers.manifest.variants:
        scores = ScorerSpec(str(peers.path), variant, "default", threads=2).open().score(docs.pairs)
        difference = np.abs(scores - expected).max()
        low, high = (0, 1e-4) if variant == "st-onnx" else (1e-6, 10)
        assert low <= difference < high, variant


def test_a_bench_runs_them_beside_our_own(tiny: ModelFolder, peers: ModelFolder, docs: Candidates) -> None:
    result = bench(tiny, docs.head(12), [Case("onnx-fp32", "planned")], repeat=1, peers=peers)
    names = [str(m.case) for m in result.measured]
    assert names[:4] == [
        "torch-fp32/default",
        "onnx-fp32/planned",
        "st-onnx/default",
        "st-onnx-qint8/default",
    ]
    assert all(m.agreement is not None for m in result.measured)
