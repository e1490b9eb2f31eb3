from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from helpers.recorder import Recorder
from helpers.tiny import make_tiny

from xopt.cli.main import cli
from xopt.runtime.bench.strategy import STRATEGIES
from xopt.runtime.folder import ModelFolder

ROOT = Path(__file__).parents[1]
Xopt = Callable[..., Result]


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [
        "search engine",
        "ranking models",
        "a query and a document",
        "text in brackets",
        "data index shard",
    ]
    lines = [
        {
            "query_id": q,
            "query": f"{q} of data",
            "doc_id": str(i),
            "text": text,
            "relevance": int(i == 0),
        }
        for q in ("ranking", "search")
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("command", cli.commands)
def test_every_command_has_help(xopt: Xopt, command: str) -> None:
    result = xopt(command, "--help")
    assert result.exit_code == 0
    has_result = command != "serve"
    assert ("--json" in result.output) == has_result


def test_the_page_of_commands_is_their_help() -> None:
    """`python docs/generate/commands.py` writes it anew."""
    page = runpy.run_path(str(ROOT / "docs" / "generate" / "commands.py"))["page"]()
    assert (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8") == page


def test_the_steps_run_one_after_the_other(xopt: Xopt, tmp_path: Path, rows: Path) -> None:
    out = tmp_path / "out"
    result_file = tmp_path / "result.json"
    model = make_tiny(tmp_path / "model")
    exported = xopt("export", model, "-o", out, "--json", result_file)
    assert exported.exit_code == 0, exported.output
    assert "onnx/model.onnx" in exported.stdout
    assert json.loads(result_file.read_text())["manifest"]["labels"] == 1
    assert_refused(xopt("export", model, "-o", out), "exists already")
    assert xopt("export", model, "-o", out, "--force").exit_code == 0
    quantised = xopt("quantize", out, "--int8", "--target", "avx2")
    assert quantised.exit_code == 0
    assert "model_qint8_avx2.onnx" in quantised.stdout
    tuned = xopt("tune", out, "--variant", "onnx-int8", "--data", rows, "--threads", 1)
    assert tuned.exit_code == 0, tuned.output
    assert "callers x threads" in tuned.stdout
    arguments = ("validate", out, "--data", rows, "--queries", 1, "--json", "-")
    checked = xopt(*arguments)
    result = json.loads(checked.stdout)
    assert checked.exit_code == {"pass": 0, "fail": 1, "undecided": 3}[result["verdict"]]
    torch = json.loads(xopt(*arguments, "--reference", "torch").stdout)
    assert (result["reference"], torch["reference"]) == ("onnx-fp32", "torch-fp32")
    assert (result["queries"], result["pairs"]) == (1, 5)
    assert "tau-b" in checked.stderr


def test_a_failed_gate_is_exit_code_1_and_is_shown(
    xopt: Xopt, tiny: ModelFolder, rows: Path
) -> None:
    result = xopt(
        "validate", tiny.path, "--variant", "onnx-fp32", "--data", rows, "--max-ndcg-drop", "-0.5"
    )
    assert result.exit_code == 1
    assert "FAIL: ndcg10_drop" in result.stdout
    assert result.stdout.splitlines()[-1] == "Verdict: fail"


def test_runs_of_any_engine_are_held_against_each_other(xopt: Xopt, tmp_path: Path) -> None:
    reference, scores, qrels = (
        tmp_path / name for name in ("reference.run", "scores.run", "qrels")
    )
    reference.write_text("".join(f"q{q} Q0 d{d} 0 {-d} any\n" for q in range(12) for d in range(5)))
    scores.write_text("".join(f"q{q} Q0 d{d} 0 {d} any\n" for q in range(12) for d in range(5)))
    qrels.write_text("".join(f"q{q} 0 d0 1\n" for q in range(12)))
    assert xopt("validate", "--scores", reference, "--reference", reference).exit_code == 0
    result = xopt("validate", "--scores", scores, "--reference", reference, "--qrels", qrels)
    assert result.exit_code == 1
    assert "scores.run: FAIL: tau -1.000" in result.stdout
    assert "where scores.run differs most: query q0" in result.stdout


def test_too_few_queries_are_exit_code_3_by_default(xopt: Xopt, tmp_path: Path) -> None:
    for name, swapped in (("a.run", False), ("b.run", True)):
        lines = [
            f"q{q} Q0 d{d} 0 {-d - 1.5 * (swapped and d == 3)} any\n"
            for q in range(9)
            for d in range(20)
        ]
        (tmp_path / name).write_text("".join(lines))
    arguments = ("validate", "--scores", tmp_path / "b.run", "--reference", tmp_path / "a.run")
    assert xopt(*arguments).exit_code == 3
    assert xopt(*arguments, "--undecided", "pass").exit_code == 0
    assert xopt(*arguments, "--undecided", "fail").exit_code == 1
    assert_refused(xopt(*arguments, "--minutes", 3), "--minutes goes with a model folder")


def test_a_gate_that_int8_cannot_hold_leaves_the_folder_as_it_was(
    xopt: Xopt, tiny_copy: ModelFolder
) -> None:
    before = (tiny_copy.path / "xopt.json").read_bytes()
    gate = ("quantize", tiny_copy.path, "--int8", "--depth", 6, "--min-tau", 1)
    assert_refused(
        xopt(*gate, "--queries", 4), "a fifth of the data's queries are used, so give 50 or more"
    )
    result = xopt(*gate, "--queries", 50)
    assert result.exit_code == 1
    assert "no INT8 passes" in result.stderr
    assert (tiny_copy.path / "xopt.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "./none"], "./none: no such folder; give a hub id, a folder or `demo`"),
        (
            ["quantize", "none", "--int8"],
            "none: no such folder; make it with `xopt export MODEL -o none`",
        ),
        (["tune", "TINY", "--variant", "onnx-int4"], "no variant 'onnx-int4'"),
        (["validate", "TINY", "--data", "none.jsonl"], "none.jsonl: no such file or folder"),
        (["bench", "TINY", "--strategy", "hasty"], "strategy 'hasty': unknown"),
        (["bench", "TINY", "--device", "cuda"], "device 'cuda': torch sees no CUDA GPU"),
        (["tune", "TINY", "--device", "cuda"], "device 'cuda': torch sees no CUDA GPU"),
        (["validate", "TINY", "--device", "cuda"], "device 'cuda': torch sees no CUDA GPU"),
        (["optimize", "TINY", "--device", "cuda"], "device 'cuda': torch sees no CUDA GPU"),
        (["quantize", "TINY"], "give --int8, for a CPU, or --fp16, for a GPU"),
        (
            ["quantize", "TINY", "--fp16", "--min-tau", "0.9"],
            "--min-tau goes with --int8, not with --fp16",
        ),
        (["validate"], "give a model folder, or two runs"),
        (
            ["validate", "TINY", "--scores", "a.run", "--reference", "b.run"],
            "give a model folder, or two runs",
        ),
        (["validate", "--scores", "a.run", "--reference", "b.run"], "b.run: cannot be read"),
        (
            ["quantize", "TINY", "--int8", "--scheme", "stock", "--min-tau", "0.9"],
            "--scheme stock has nothing to steer",
        ),
        (["export", "TINY", "--json", "/none/of/this.json", "-o", "TINY"], "exists already"),
        (
            ["export", "TINY", "--torch-only", "--portable"],
            "--portable is for a graph, which --torch-only leaves out",
        ),
        (
            ["quantize", "TINY", "--int8", "--scheme", "stock", "--data", "x"],
            "--data calibrates, and --scheme stock",
        ),
        (["cascade", "TINY", "--max-loss", "nan"], "'nan' is not a number"),
        (["cascade", "TINY", "--confidence", "NaN"], "'NaN' is not a number"),
        (
            ["shrink", "TINY", "-o", "none", "--layers", "1", "--minutes", "nan"],
            "'nan' is not a number",
        ),
        (["validate", "TINY", "--minutes", "nan"], "'nan' is not a number"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    xopt: Xopt, tiny: ModelFolder, arguments: list[str], message: str
) -> None:
    result = xopt(*(str(tiny.path) if a == "TINY" else a for a in arguments))
    assert_refused(result, message)
    assert result.stdout == ""
    if "Usage" not in result.stderr:
        assert len([line for line in result.stderr.splitlines() if line.startswith("Error")]) == 1


def test_peers_are_for_a_cpu(
    xopt: Xopt, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    result = xopt("bench", tiny.path, "--device", "cuda", "--peers")
    assert_refused(result, "--peers is for a CPU")


HEAVY = {"torch", "transformers", "onnxruntime", "daft"}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["validate", "--scores", "a.run", "--reference", "a.run"]],
    ids=" ".join,
)
def test_what_needs_no_model_is_quick_and_imports_nothing_heavy(
    tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "a.run").write_text(
        "".join(f"q{q} Q0 d{d} 0 {d} any\n" for q in range(12) for d in range(5))
    )
    code = (
        "import sys; from xopt.cli.main import cli; "
        f"code = cli.main({arguments!r}, standalone_mode=False); "
        f"print(sorted({HEAVY!r} & set(sys.modules)), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].startswith("[]")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal")
@pytest.mark.parametrize(("before", "ignored"), [("SIG_IGN", True), ("SIG_DFL", False)])
def test_nohup_is_heeded(before: str, ignored: bool) -> None:
    code = (
        f"import signal, sys; signal.signal(signal.SIGHUP, signal.{before})\n"
        "sys.argv = ['xopt', '--version']\n"
        "from xopt.cli.main import main\ntry: main()\n"
        "except SystemExit: print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(ignored)


@pytest.fixture
def main_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `xopt optimize` run the same cases on every machine, however fast it is."""
    # OpenVINO takes part where INT8 sums do not saturate
    monkeypatch.setattr("xopt.optimize.pipeline.saturates", lambda: False)
    one_process = replace(STRATEGIES["concurrent"], workers=None)  # `test_bench.py` has its four
    monkeypatch.setitem(STRATEGIES, "concurrent", one_process)
    monkeypatch.setattr("xopt.optimize.tune.CONTENDER_SHARE", 0.0)


def test_the_main_job_recommends_on_a_users_own_data(
    xopt: Xopt, tmp_path: Path, rows: Path, main_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setattr("xopt.cli.main.listener_on", lambda _: recorder)
    model = make_tiny(tmp_path / "model")
    out = tmp_path / "out"
    done = xopt("optimize", model, "-o", out, "--data", rows, "--pairs", 10, "--repeat", 1)
    assert done.exit_code == 0, done.output
    table, _, recommended = done.stdout.partition("Recommended: ")
    assert "openvino-int8" in table
    assert "open_scorer" in recommended
    assert "callers x threads" not in done.stdout
    assert "openvino-int8/planned" not in done.stdout
    assert (out / "report.html").is_file()
    (step,) = recorder.titled("optimize")
    assert (step.done, step.total) == (6, 6)
    for inner in ("export", "making onnx-int8", "tune", "bench", "validate"):
        assert ("optimize", inner) in recorder.stacks
    assert ("optimize", "validate", "openvino-int8 scores") in recorder.stacks


@pytest.mark.slow
def test_the_main_job_does_nothing_twice_and_only_for_the_same_model(
    xopt: Xopt, tmp_path: Path, rows: Path, main_job: None
) -> None:
    model = make_tiny(tmp_path / "model")
    out = tmp_path / "out"
    arguments = ["optimize", model, "-o", out, "--data", rows, "--pairs", 10, "--repeat", 1]
    first = xopt(*arguments)
    assert first.exit_code == 0, first.output
    second = xopt(*arguments, "-v", "--json", "-")
    assert json.loads(second.stdout)["tunings"] == []
    assert "openvino-int8/planned" in second.stderr
    assert "is there already" in second.stderr
    # the same folder, as TAB writes it
    same = xopt("optimize", f"{model}/", "-o", out, "--data", rows, "--min-labels", 0.9)
    assert "a model with 1 label has no such measure" in same.stderr
    with (model / "model.safetensors").open("r+b") as weights:  # trained again
        weights.seek(-4, 2)
        weights.write(b"\0\0\0\1")
    changed = xopt(*arguments)
    assert_refused(changed, "changed since")
    assert "--force" in changed.stderr
    other = make_tiny(tmp_path / "other", "roberta")
    refused = xopt("optimize", other, "-o", out, "--data", rows)
    assert_refused(refused, "choose another folder")
