from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xopt.optimize.peers import make_peers
from xopt.optimize.quantize import detect_target
from xopt.runtime.bench.bench import BASELINE, Case, bench
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.bench.rivals import fastest_rival, rivals
from xopt.runtime.bench.strategy import ScorerSpec
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import has_module


@pytest.fixture(scope="module")
def peers(
    tiny: ModelFolder, docs: Candidates, tmp_path_factory: pytest.TempPathFactory
) -> ModelFolder:
    out = tmp_path_factory.mktemp("peers") / "model"
    if not has_module("optimum.onnxruntime"):
        with pytest.raises(
            BadInput, match="sentence-transformers has no ONNX of it to compare with"
        ):
            make_peers(tiny, docs, detect_target(), out)
        pytest.skip("optimum is not installed here")
    return make_peers(tiny, docs, detect_target(), out)


def test_peers_are_sentence_transformers_own_exports(
    tiny: ModelFolder, peers: ModelFolder, docs: Candidates
) -> None:
    assert list(peers.manifest.variants)[:2] == ["st-onnx", "st-onnx-qint8"]
    expected = ReferenceScorer(tiny, tiny.variant("torch-fp32"), threads=2).score(docs.pairs)
    for variant in peers.manifest.variants:
        strategy = "planned" if variant == "ct2-int8" else "default"
        scores = ScorerSpec(str(peers.path), variant, strategy, threads=2).open().score(docs.pairs)
        difference = np.abs(scores - expected).max()
        low, high = (0, 1e-4) if variant == "st-onnx" else (1e-6, 10)
        assert low <= difference < high, variant


@pytest.mark.slow
def test_each_runs_with_its_best_batch_size_beside_our_own(
    tiny: ModelFolder, peers: ModelFolder, docs: Candidates
) -> None:
    some = {
        name: each
        for name, each in peers.manifest.variants.items()
        if name in ("st-onnx", "ct2-int8")
    }
    peers = replace(peers, manifest=replace(peers.manifest, variants=some))
    theirs = rivals(tiny, docs, peers, [], 2)
    assert [case.variant for case in theirs if case.strategy == "default"] == ["st-onnx"]
    assert {case.strategy for case in theirs} <= {"default", "batch-8", "batch-1", "planned"}
    assert Case("ct2-int8", "planned") in theirs
    result = bench(
        tiny, docs.head(12), [Case("onnx-fp32", "planned"), *theirs], repeat=1, peers=peers
    )
    assert [m.case for m in result.measured] == list(
        dict.fromkeys([BASELINE, Case("onnx-fp32", "planned"), *theirs])
    )
    assert all(m.agreement is not None for m in result.measured)
    fastest, ours = fastest_rival(result, theirs)
    assert fastest.pairs_per_s == max(m.pairs_per_s for m in result.measured if m.case in theirs)
    assert fastest.agreement is not None
    agree = [m for m in result.measured if m.agreement and m.agreement.tau >= fastest.agreement.tau]
    assert ours == max(
        (m for m in agree if m.case not in theirs), key=lambda m: m.pairs_per_s, default=None
    )
