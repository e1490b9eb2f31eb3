from __future__ import annotations

from dataclasses import replace

import pytest

from xopt.cli.commands.bench import print_explained
from xopt.cli.output import Output
from xopt.runtime.bench.bench import BASELINE, Bench, Case, bench
from xopt.runtime.bench.explain import Finding
from xopt.runtime.bench.strategy import STRATEGIES
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder


def test_every_strategy_runs_in_daft_and_agrees(benched: Bench) -> None:
    measured = {m.case: m for m in benched.measured}
    assert next(iter(measured)) == BASELINE
    assert {case.strategy for case in measured} == {
        s.name for s in STRATEGIES.values() if not s.by_query
    } - {"concurrent"}
    for each in measured.values():  # of one round each
        assert each.ratio == pytest.approx(each.pairs_per_s / measured[BASELINE].pairs_per_s)
    for case in [case for case in measured if case.variant == "torch-fp32"]:
        agreed = measured[case].agreement
        assert agreed is not None
        assert agreed.max_difference < 1e-4
    assert len(measured[Case("torch-fp32", "row")].rounds[0].calls_s) == benched.pairs


def test_what_runs_once_is_held_against_the_first_round(
    tiny: ModelFolder, docs: Candidates
) -> None:
    exact = Case("onnx-fp32", "planned")
    int8 = Case("onnx-int8", "planned")
    baseline, twice, once = bench(tiny, docs.head(8), [exact, int8], repeat=2, once=[int8]).measured
    assert [len(m.rounds) for m in (baseline, twice, once)] == [2, 2, 1]
    assert once.ratio == pytest.approx(baseline.rounds[0].wall_s / once.rounds[0].wall_s)
    ratios = [b.wall_s / r.wall_s for b, r in zip(baseline.rounds, twice.rounds, strict=True)]
    assert twice.ratio == pytest.approx(sum(ratios) / 2)  # the median of two


@pytest.mark.slow
def test_each_case_has_a_fresh_process_and_workers_of_its_own(
    demo: ModelFolder, docs: Candidates, fresh_processes: None
) -> None:
    cases = [BASELINE, Case("torch-fp32", "concurrent"), Case("onnx-int8", "planned")]
    baseline, concurrent, int8 = bench(demo, docs, cases, repeat=1).measured
    assert concurrent.agreement is not None
    assert concurrent.agreement.max_difference < 1e-4
    # The workers do the work, which a monitor of the parent misses. How many of them get a batch
    # is no certain thing: the first to be ready may take them all.
    assert concurrent.root_mean_cores < 0.1 * concurrent.mean_cores
    assert int8.peak_bytes < baseline.peak_bytes


def test_a_gpus_time_is_split_without_ceilings(
    benched: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    print_explained(Output(None), replace(benched, ceilings=None))  # as on a GPU
    shown = capsys.readouterr().out
    assert "GPU idle" in shown
    assert "onnx-int8/planned" in shown
    assert "torch-fp32/default" not in shown  # sentence-transformers does not tell


def test_no_gain_is_promised_that_another_row_has_measured(
    benched: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    for measured in benched.measured:
        if measured.case == BASELINE:
            assert measured.explained
            padded = replace(measured.explained, findings=(Finding("padding", 99.0, "Sort."),))
            changed = replace(measured, explained=padded)
    others = tuple(each for each in benched.measured if each.case != BASELINE)
    print_explained(Output(None), replace(benched, measured=(changed, *others)))
    shown = capsys.readouterr().out
    assert "torch-fp32/default: Sort. Measured: torch-fp32/planned is " in shown
    assert "99" not in shown[shown.index("Sort.") :].splitlines()[0]


def test_what_is_not_there_is_refused_before_anything_is_measured(
    tiny: ModelFolder, docs: Candidates
) -> None:
    with pytest.raises(BadInput, match="no variant 'onnx-int4'"):
        bench(tiny, docs, [Case("onnx-int4", "planned")])
    with pytest.raises(BadInput, match="strategy 'hasty': unknown; one of row, default"):
        bench(tiny, docs, [Case("onnx-fp32", "hasty")])
    with pytest.raises(BadInput, match="device 'cuda': torch sees no CUDA GPU"):
        bench(tiny, docs, [Case("onnx-fp32", "planned")], device="cuda")


def test_a_file_damaged_after_the_check_is_named_by_the_worker(
    tiny_copy: ModelFolder, docs: Candidates, fresh_processes: None
) -> None:
    # of the baseline, which comes first
    (tiny_copy.path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BadInput, match=r"model.safetensors: sha256 differs"):
        bench(tiny_copy, docs.head(8), [BASELINE], repeat=1)
