"""What a run's measurements say; `test_bottlenecks.py` has runs that were measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xopt.runtime.bench.ceilings import Ceilings
from xopt.runtime.bench.explain import Explained, Observed, explain, outlook
from xopt.runtime.bench.shape import ModelShape
from xopt.runtime.folder import ModelFolder, Variant
from xopt.runtime.scoring.profile import Profile
from xopt.runtime.scoring.stages import Stages

CEILINGS = Ceilings(
    threads=2, fp32_gflops=100.0, int8_gflops=300.0, bf16_gflops=200.0, memory_gbs=10.0
)
FP32 = Variant("onnx-fp32", "onnx", "fp32", "onnx/model.onnx")
SHAPE = ModelShape(
    layers=2,
    hidden=100,
    intermediate=400,
    gated=False,
    narrowed=False,
    absorbed=False,
    queries=100,
    keys=100,
)
# Two callers are in forwards for eight of ten seconds each, on texts without padding, at 80 % of
# the ceiling.
STAGES = Stages(
    encode_s=0.5,
    run_s=9.0,
    forward_s=16.0,
    caller_s=18.0,
    forwards=100.0,
    text_tokens=640e9 / (2 * SHAPE.weights),
    padded_tokens=640e9 / (2 * SHAPE.weights),
)
RUN = Observed(
    variant=FP32,
    planned=True,
    start_up_s=1.0,
    reopened=False,
    window_s=10.0,
    calls_s=10.0,
    calls_sum_s=10.0,
    stages=STAGES,
    processes=1,
    threads=2,
    cores=2,
    mean_cores=1.9,
)


def explained(stages: dict[str, Any] | None = None, **changed: Any) -> Explained:
    """What is said of a run that differs so from `RUN`."""
    return explain(
        replace(RUN, stages=replace(STAGES, **(stages or {})), **changed), SHAPE, CEILINGS
    )


def test_a_run_is_split_without_rest() -> None:
    split = explained().split
    assert split.total_s == pytest.approx(RUN.window_s + RUN.start_up_s)
    assert (split.start_up_s, split.daft_s) == (1.0, 0.0)
    assert split.tokenise_s == pytest.approx(0.5)
    assert split.forward_s == pytest.approx(8.0)
    assert split.waiting_s == pytest.approx(1.0)
    assert split.other_s == pytest.approx(0.5)
    padded = explained({"text_tokens": STAGES.padded_tokens / 4}).split
    assert padded.forward_s == pytest.approx(2.0)
    assert padded.padding_s == pytest.approx(6.0)


def test_calls_of_several_processes_overlap() -> None:
    split = explained(calls_s=5.0).split
    assert split.daft_s == pytest.approx(5.0)
    assert split.tokenise_s == pytest.approx(0.25)
    assert split.total_s == pytest.approx(RUN.window_s + RUN.start_up_s)


def test_forwards_are_held_against_the_ceiling_of_their_precision() -> None:
    found = explained()
    assert found.gflops == pytest.approx(80.0)
    assert found.of_ceiling == pytest.approx(0.8)
    assert found.memory_gbs == pytest.approx(100 * SHAPE.weights * 4 / 8e9)
    for precision, ceiling in (("int8", 300.0), ("bf16", 200.0), ("fp16", 100.0)):
        variant = replace(FP32, precision=precision)
        assert explained(variant=variant).of_ceiling == pytest.approx(80.0 / ceiling)
    unknown = explain(RUN, None, CEILINGS)
    assert (unknown.gflops, unknown.of_ceiling, unknown.memory_gbs) == (None, None, None)


def test_at_the_ceiling_other_products_help_or_nothing_does() -> None:
    compute = explained().bottleneck
    # Eight of ten seconds are forwards, and their products can be three times as fast.
    assert (compute.name, compute.gain) == ("compute", pytest.approx(1 / (0.2 + 0.8 / 3)))
    assert "xopt quantize --int8" in compute.advice
    int8 = explained(
        {"padded_tokens": 3 * STAGES.padded_tokens}, variant=replace(FP32, precision="int8")
    )
    assert (int8.bottleneck.name, int8.bottleneck.gain) == ("compute", 1.0)


@pytest.mark.parametrize(
    ("name", "gain", "stages", "changed"),
    [
        (
            "tokenising",
            2.0,
            {"encode_s": 5.0, "run_s": 5.0, "forward_s": 9.0, "caller_s": 10.0},
            {},
        ),
        (
            "reading",
            2.0,
            {"encode_s": 0.1, "run_s": 4.9},
            {"calls_s": 5.0, "calls_sum_s": 5.0, "mean_cores": 0.95},
        ),
        ("padding", 1 / (1 - 0.6), {"text_tokens": STAGES.padded_tokens / 4}, {"planned": False}),
        ("loading", 3.0, {}, {"start_up_s": 20.0, "reopened": True}),
        ("idle threads", 2.0, {}, {"mean_cores": 1.0}),
        ("oversubscribed threads", 1 / (0.2 + 0.8 * 0.8), {}, {"processes": 4}),
        (
            "batching",
            1 / (0.2 + 0.8 / 2.5),
            {"padded_tokens": STAGES.padded_tokens / 4},
            {"planned": False},
        ),
        ("memory", 1 / (1 - 0.8), {"forwards": 1.2e6 / 4}, {}),
    ],
)
def test_what_holds_a_run_back_comes_first_with_what_it_would_give(
    name: str, gain: float, stages: dict[str, float], changed: dict[str, Any]
) -> None:
    bottleneck = explained(stages, **changed).bottleneck
    assert bottleneck.name == name
    assert bottleneck.gain == pytest.approx(gain, rel=0.01)


SPEEDS = {
    "torch-fp32/default": 1.0,
    "torch-fp32/planned": 1.7,
    "st-onnx/default": 1.1,
    "st-onnx-qint8/default": 1.5,
    "st-onnx-qint8/batch-1": 3.0,
    "onnx-int8/planned": 4.0,
    "openvino-int8/planned": 5.1,
    "ct2-int8/planned": 6.0,  # of other tools
}


@pytest.mark.parametrize(
    ("case", "findings", "said"),
    [
        (
            "torch-fp32/default",
            [("batching", 4.1), ("padding", 2.0), ("tokenising", 1.3)],
            "Measured: torch-fp32/planned is 1.7 times as fast. "
            "Also: padding, tokenising (at most 1.3 times as fast).",
        ),
        (
            "torch-fp32/planned",
            [("compute", 10.0)],
            "Measured: openvino-int8/planned is 3.0 times as fast.",
        ),
        ("st-onnx/default", [("padding", 2.5)], "At most 2.5 times as fast."),
        (
            "st-onnx-qint8/default",
            [("batching", 6.7), ("padding", 1.6)],
            "Measured: st-onnx-qint8/batch-1 is 2.0 times as fast. Also: padding.",
        ),
        ("st-onnx-qint8/batch-1", [("batching", 3.5)], "At most 3.5 times as fast."),
        ("torch-fp32/planned", [("idle threads", 1.3)], "At most 1.3 times as fast."),
        ("onnx-int8/planned", [("compute", 1.0)], ""),
    ],
)
def test_a_bound_gives_way_to_what_was_measured(
    case: str, findings: list[tuple[str, float]], said: str
) -> None:
    assert outlook(case, findings, SPEEDS) == said


def test_a_profile_adds_kinds_and_how_near_the_products_come() -> None:
    profiled = Profile(
        {"products": 3.0, "attention": 1.0},
        padded_tokens=int(300e9 / (2 * SHAPE.weights)),
        threads=1,
    )
    found = explain(RUN, SHAPE, CEILINGS, profiled)
    assert found.kinds == {"products": 0.75, "attention": 0.25}
    # 100 in a second, of 50 that a thread can do
    assert found.products_of_ceiling == pytest.approx(2.0)
    assert explain(RUN, SHAPE, CEILINGS).products_of_ceiling is None


def test_int8_speeds_up_the_products_alone() -> None:
    seconds = {"products": 5.0, "attention": 3.0, "activation": 1.9, "moving": 0.1}
    profiled = Profile(seconds, padded_tokens=int(200e9 / (2 * SHAPE.weights)), threads=1)
    compute = explain(RUN, SHAPE, CEILINGS, profiled).bottleneck
    assert compute.gain == pytest.approx(1 / (0.2 + 0.8 * (0.5 + 0.5 / 3)))
    assert compute.advice.startswith(
        "Products take 50% of a forward, at 80% of what the cores can do. "
        "The rest is attention 30%, activation 19%. INT8 products are 3.0 times as fast here"
    )
    unknown = explain(RUN, None, CEILINGS, profiled).bottleneck
    assert unknown.gain == compute.gain
    assert unknown.advice.startswith("Products take 50% of a forward. The rest is attention 30%")


def test_the_work_of_a_forward_follows_from_the_models_shape(demo: ModelFolder) -> None:
    shape = ModelShape.of(demo, demo.variant("onnx-fp32"))
    assert shape == ModelShape(
        layers=6,
        hidden=384,
        intermediate=1536,
        gated=False,
        narrowed=True,
        absorbed=True,
        queries=384,
        keys=384,
    )
    layer = 4 * 384**2 + 2 * 384 * 1536
    assert shape.weights == 5 * layer
    assert replace(shape, absorbed=False).weights == 5 * layer + 2 * 384**2
    assert replace(shape, gated=True).weights == 5 * (layer + 384 * 1536)
    assert shape.operations(100, 0) == 200 * shape.weights
    whole = ModelShape.of(demo, demo.variant("torch-fp32"))
    assert whole is not None
    assert whole.operations(0, 10_000) == 4 * 6 * 384 * 10_000
