"""Runs that something holds back, measured: the explanation names it. `test_explain.py` has the
reckoning.
"""

from __future__ import annotations

import os
import time

import daft
import numpy as np
import pytest

from xopt.runtime.bench.ceilings import Ceilings, measure_ceilings
from xopt.runtime.bench.explain import Explained, Observed, explain
from xopt.runtime.bench.in_daft import pairs_frame, run_strategy
from xopt.runtime.bench.monitor import TreeMonitor
from xopt.runtime.bench.shape import ModelShape
from xopt.runtime.bench.strategy import STRATEGIES, ScorerSpec
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Pair

# Daft leaves the pipes of its worker processes to the garbage collector.
LEAKY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(cores() < 2, reason="one core: no threads to idle or to oversubscribe"),
]


@pytest.fixture(scope="module")
def ceilings() -> Ceilings:
    return measure_ceilings(cores())


@pytest.fixture(scope="module")
def mixed(docs: Candidates) -> list[Pair]:
    """Long and short texts in turn."""
    return [
        (query, (text + " ") * 8 if i % 4 == 0 else text[:60])
        for i, (query, text) in enumerate(docs.pairs[:48])
    ]


def observe(
    folder: ModelFolder,
    variant: str,
    strategy: str,
    pairs: list[Pair],
    ceilings: Ceilings,
    threads: int | None = None,
    frame: daft.DataFrame | None = None,
) -> Explained:
    """Run a case in this process's Daft and explain it, as the bench does with its worker."""
    spec = ScorerSpec(str(folder.path), variant, strategy, threads or cores())
    run = run_strategy(spec, pairs, frame)
    with TreeMonitor(os.getpid()) as monitor:
        time.sleep(0.3)
        done = run()
        time.sleep(0.3)
    reopened = STRATEGIES[strategy].workers is not None
    first = min(call.start_s for call in done.calls)
    start = done.start_s
    end = done.end_s
    if reopened:
        start = first
        end = max(call.end_s for call in done.calls)
    lengths = [call.end_s - call.start_s for call in done.calls]
    stages = done.calls[0].stages
    for call in done.calls[1:]:
        stages = stages.plus(call.stages)
    observed = Observed(
        variant=folder.variant(variant),
        planned=strategy == "planned",
        start_up_s=first - done.start_s if reopened else done.load_s,
        reopened=reopened,
        window_s=end - start,
        calls_s=min(sum(lengths), end - start),
        calls_sum_s=sum(lengths),
        stages=stages,
        processes=len({call.pid for call in done.calls}),
        threads=threads or cores(),
        cores=cores(),
        mean_cores=monitor.usage(start, end).mean_cores,
    )
    explained = explain(observed, ModelShape.of(folder, folder.variant(variant)), ceilings)
    whole = observed.window_s + observed.start_up_s
    # nothing is lost and nothing counted twice
    assert explained.split.total_s == pytest.approx(whole, rel=0.05)
    return explained


def names(explained: Explained) -> list[str]:
    return [finding.name for finding in explained.findings]


def test_one_thread_of_several_cores_leaves_some_idle(
    demo: ModelFolder, docs: Candidates, ceilings: Ceilings
) -> None:
    found = observe(demo, "onnx-fp32", "planned", docs.pairs, ceilings, threads=1)
    assert found.bottleneck.name == "idle threads"
    assert found.bottleneck.gain > 1.3


def test_long_and_short_texts_in_one_batch_are_padded(
    demo: ModelFolder, mixed: list[Pair], ceilings: Ceilings
) -> None:
    found = observe(demo, "torch-fp32", "batch", mixed, ceilings)
    assert found.bottleneck.name == "padding"
    planned = observe(demo, "torch-fp32", "planned", mixed, ceilings)
    assert "padding" not in names(planned)
    assert planned.split.padding_s < 0.3 * found.split.padding_s


def test_a_slow_reader_keeps_the_model_waiting(
    demo: ModelFolder, docs: Candidates, ceilings: Ceilings
) -> None:
    @daft.func.batch(return_dtype=daft.DataType.string())
    def slowly(text: daft.Series) -> list[str]:
        time.sleep(3)
        return text.to_pylist()

    frame = pairs_frame(docs.pairs).with_column("text", slowly(daft.col("text")))
    found = observe(demo, "onnx-int8", "planned", docs.pairs, ceilings, frame=frame)
    assert found.bottleneck.name == "reading"


@LEAKY
def test_workers_that_open_the_model_for_each_query_spend_their_time_loading(
    demo: ModelFolder, docs: Candidates, ceilings: Ceilings
) -> None:
    found = observe(demo, "onnx-fp32", "concurrent", docs.pairs[:8], ceilings)
    assert found.bottleneck.name == "loading"


def test_a_ceiling_is_what_a_plain_product_reaches(ceilings: Ceilings) -> None:
    assert ceilings.int8_gflops > 0.8 * ceilings.fp32_gflops
    x = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    start = time.perf_counter()
    for _ in range(10):
        x @ x
    assert 10 * 2 * 1024**3 / (time.perf_counter() - start) / 1e9 < 2 * ceilings.fp32_gflops


@LEAKY
def test_four_workers_with_all_threads_each_are_in_each_others_way(
    demo: ModelFolder, docs: Candidates, ceilings: Ceilings
) -> None:
    equal = [
        (query[:40], text[:100] + " word" * 40) for query, text in docs.pairs for _ in range(3)
    ]
    found = observe(demo, "torch-fp32", "concurrent", equal, ceilings)
    assert "oversubscribed threads" in names(found)[:2]  # loading may take longer yet
