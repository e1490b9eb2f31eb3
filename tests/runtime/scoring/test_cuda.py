"""What only a GPU can show. `python docs/measure/gpu.py` runs these on a machine without optimum,
daft and the like.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import MAX_LENGTH, make_tiny

from xopt.optimize.export import export
from xopt.optimize.model.parity import parity_pairs
from xopt.optimize.tune import tune
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import machine_name
from xopt.runtime.scoring.backends.varlen import VARLEN_TYPES
from xopt.runtime.scoring.plan import plan_forwards
from xopt.runtime.scoring.scorer import open_scorer
from xopt.runtime.scoring.variants import variants_on

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU here"),
]
PAIRS = [pair for pair in parity_pairs(MAX_LENGTH) for _ in range(3)] + [
    ("data", "search " * n) for n in range(60)
]
# logits of tiny random models spread by 0.3 to 0.7
CLOSE = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.15}


def exported(folder: Path, architecture: str = "bert", **config: Any) -> ModelFolder:
    return export(
        str(make_tiny(folder / "model", architecture, **config)), folder / "out", torch_only=True
    )


@pytest.mark.parametrize("architecture", VARLEN_TYPES)
def test_every_variant_gives_the_logits_of_fp32_on_a_cpu(tmp_path: Path, architecture: str) -> None:
    folder = exported(tmp_path, architecture)
    expected = open_scorer(folder.path, "torch-fp32").score(PAIRS)
    for name in variants_on(folder, "cuda"):
        scorer = open_scorer(folder.path, name, device="cuda", plan=Plan(1, 2, 1024))
        scores, close = scorer.score(PAIRS), CLOSE[folder.variant(name).precision]
        assert np.abs(scores - expected).max() < close, name
        assert np.abs(scorer.score(PAIRS[::-1])[::-1] - scores).max() < close, name
        assert scorer.stages.forward_s > 0
        assert scorer.stages.copy_s > 0


@pytest.mark.parametrize("architecture", VARLEN_TYPES)
def test_no_packed_forward_waits_for_the_device(tmp_path: Path, architecture: str) -> None:
    scorer = open_scorer(exported(tmp_path, architecture).path, "torch-varlen-fp16", device="cuda")
    tokens = scorer.encoder.encode(PAIRS)
    scorer.score_tokens(tokens)  # what is set up once may wait
    forwards = plan_forwards(tokens.lengths, 512, MAX_LENGTH)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = [
            scorer.backend.forward(scorer.backend.load(tokens, forward)) for forward in forwards
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.isfinite(scorer.backend.finish(outputs)).all()


def test_out_of_memory_halves_the_budget_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exported(tmp_path, hidden_size=512, intermediate_size=16384, initializer_range=0.05)
    pairs = [("data", f"search {'engine ' * (i % 50)} {i}") for i in range(4000)]
    expected = open_scorer(
        folder.path, "torch-varlen-fp16", device="cuda", plan=Plan(1, 1, 1024)
    ).score(pairs)
    torch.cuda.empty_cache()
    limit = (torch.cuda.memory_allocated() + (600 << 20)) / torch.cuda.get_device_properties(
        0
    ).total_memory
    torch.cuda.set_per_process_memory_fraction(limit)
    try:
        scorer = open_scorer(
            folder.path, "torch-varlen-fp16", device="cuda", plan=Plan(1, 1, 1 << 20)
        )
        scores = scorer.score(pairs)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert scorer.plan.tokens < 1 << 20
    assert "out of memory with 1048576 tokens a forward: going on with 524288" in caplog.text
    assert np.abs(scores - expected).max() < CLOSE["fp16"]


def test_a_plan_for_the_gpu_is_kept_under_its_name(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    rows = tuple(
        Row("q", query, str(i), text) for i, (query, text) in enumerate(dict.fromkeys(PAIRS))
    )
    made, (tuning,) = tune(folder, ["torch-varlen-fp16"], Candidates("pairs", rows), device="cuda")
    assert made.manifest.plans == {machine_name("cuda"): {"torch-varlen-fp16": tuning.best}}
    assert open_scorer(folder.path, "torch-varlen-fp16", device="cuda").plan == tuning.best


def test_variants_run_in_daft_with_a_gpu_each(tmp_path: Path) -> None:
    for package in ("daft", "ir_measures"):
        pytest.importorskip(package, reason=f"{package} is not installed here")
    from xopt.runtime.bench.bench import BASELINE, Case, bench

    rows = tuple(
        Row("q", query, str(i), text) for i, (query, text) in enumerate(dict.fromkeys(PAIRS))
    )
    case = Case("torch-varlen-fp16", "planned")
    result = bench(exported(tmp_path), Candidates("pairs", rows), [case], repeat=1, device="cuda")
    assert [m.case for m in result.measured] == [BASELINE, case]
    agreed = result.measured[1].agreement
    assert agreed is not None
    assert agreed.max_difference < CLOSE["fp16"]
