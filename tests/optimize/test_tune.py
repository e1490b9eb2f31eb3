from __future__ import annotations

from dataclasses import replace

import pytest

from xopt.optimize import tune as module
from xopt.optimize.tune import TOKENS, contenders, plans_for, tune
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan
from xopt.runtime.machine import machine_name


@pytest.mark.parametrize(
    ("threads", "shares"),
    [(1, {(1, 1)}), (2, {(1, 2), (2, 1)}), (6, {(1, 6), (2, 3), (3, 2), (6, 1)})],
)
def test_plans_share_out_all_threads(threads: int, shares: set[tuple[int, int]]) -> None:
    plans = plans_for(threads)
    assert {(p.callers, p.threads) for p in plans} == shares
    assert len(plans) == len(shares) * len(TOKENS["cpu"])


@pytest.mark.parametrize("variant", ["onnx-int8", "torch-fp32"])
def test_the_best_plan_is_kept_and_used(
    tiny_copy: ModelFolder, docs: Candidates, variant: str
) -> None:
    tiny_copy.write(
        lambda manifest: replace(manifest, plans={"another machine": {variant: Plan(9, 9, 9)}})
    )
    folder, (tuning,) = tune(ModelFolder.open(tiny_copy.path), [variant], docs, threads=2)
    assert {t.plan for t in tuning.trials} == set(plans_for(2))
    rungs = [len(t.pairs_per_s) for t in tuning.trials]
    assert rungs == sorted(rungs, reverse=True)
    assert tuning.best == tuning.trials[0].plan
    assert open_scorer(folder.path, variant, threads=2).plan == tuning.best
    assert ModelFolder.open(tiny_copy.path).manifest.plans == {
        "another machine": {variant: Plan(9, 9, 9)},
        machine_name(): {variant: tuning.best},
    }


def test_an_unknown_variant_is_refused_before_anything_is_measured(
    tiny_copy: ModelFolder, docs: Candidates
) -> None:
    with pytest.raises(BadInput, match="no variant 'onnx-int4'"):
        tune(tiny_copy, ["onnx-fp32", "onnx-int4"], docs)
    assert ModelFolder.open(tiny_copy.path).manifest.plans == {}


def test_contenders_are_what_may_be_fastest_and_the_fastest_exact_one(
    tiny: ModelFolder, docs: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = iter([10.0, 20.0, 59.0, 61.0, 100.0])
    # speeds are a machine's, and none is like another
    monkeypatch.setattr(module, "_pairs_per_s", lambda *_: next(speeds))
    variants = ["torch-fp32", "onnx-fp32", "torch-bf16", "onnx-int8", "torch-fp16"]
    assert contenders(tiny, variants, docs) == ["onnx-fp32", "onnx-int8", "torch-fp16"]
