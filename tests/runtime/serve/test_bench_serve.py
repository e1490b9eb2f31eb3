"""`xopt bench --serve`: from the options to the tables, on real servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from xopt.optimize.report.page import read_results, render
from xopt.runtime.bench.load import SizeSummary, Summary
from xopt.runtime.bench.served import LoadSettings, ServedLoad, bench_variants, requests_of, search
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.errors import BadInput

SHORT = ("--sizes", "1,5", "--clients", 2, "--seconds", 0.5)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XOPT_API_KEY", raising=False)


@pytest.fixture
def rows(docs: Candidates, tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"query": row.query, "text": row.text}) for row in docs.rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.fixture
def bench_serve(tiny: Any, rows: Path, xopt: Callable[..., Result]) -> Callable[..., Result]:
    return lambda *options: xopt("bench", tiny.path, "--data", rows, *options)


def test_a_server_of_a_variant_is_started_loaded_and_shown(bench_serve, tmp_path):
    file = tmp_path / "served.json"
    result = bench_serve("--serve", *SHORT, "--variant", "onnx-fp32", "--json", file)
    assert result.exit_code == 0, result.output
    (server,) = json.loads(file.read_text())["served"]
    assert server["name"] == "onnx-fp32"
    assert server["bare_pairs_per_s"] > 0
    closed, *opened = server["loads"]
    highest = closed["summary"]["requests_per_s"]
    rates = [load["rate"] / highest for load in opened]
    assert closed["rate"] is None
    assert rates == pytest.approx([0.5, 0.8])
    for load in server["loads"]:
        found = load["summary"]
        assert found["answered"] == found["sent"] > 0
        assert {size["documents"] for size in found["sizes"]} <= {1, 5}
    assert f"{opened[-1]['rate']:.1f} requests a second with p95 of" in result.stdout
    for markdown in (False, True):
        page = render(read_results([file]), None, markdown=markdown)
        assert "onnx-fp32" in page
        assert f"{highest:.1f}" in page
        assert "nan" not in page


def test_a_running_server_is_loaded_with_its_key(bench_serve, serve, monkeypatch):
    with serve(api_keys=("key",)) as client:
        address = str(client.base_url)
        assert_refused(bench_serve("--serve", address, *SHORT), "answers with status 401")
        monkeypatch.setenv("XOPT_API_KEY", "key")
        result = bench_serve("--serve", address, *SHORT, "--rate", 20)
    assert result.exit_code == 0, result.output
    assert "20.0 requests a second with p95 of" in result.stdout


def test_a_time_that_is_always_kept_leads_to_the_highest_rate(bench_serve, serve):
    with serve() as client:
        result = bench_serve("--serve", str(client.base_url), *SHORT, "--p95", 100_000)
    assert result.exit_code == 0, result.output
    assert "requests a second with p95 under 100,000.0 ms" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--serve", "--strategy", "planned"), "--strategy is for the bench inside Daft"),
        (("--serve", "--peers"), "--peers is for the bench inside Daft"),
        (("--serve", "--explain"), "--explain is for the bench inside Daft"),
        (("--serve", "--repeat", 2), "--repeat is for the bench inside Daft"),
        (("--serve", "--pairs", 2), "--pairs is for the bench inside Daft"),
        (("--rate", 5), "--rate goes with --serve"),
        (("--sizes", "1"), "--sizes goes with --serve"),
        (("--serve", "--rate", 5, "--p95", 9), "--p95 looks for a rate"),
        (("--serve", "http://h", "--variant", "onnx-fp32"), "--variant is up to the server"),
        (("--serve", "--sizes", "1,x"), "are no numbers of documents"),
        (("--serve", "--sizes", "1,0"), "are no numbers of documents"),
        (("--serve", "--sizes", "100000"), "different documents, and --sizes 100000 asks"),
        (("--serve", "models"), "--serve models: is no address"),
        (("--serve", "http://127.0.0.1:1", "--sizes", "1"), "cannot be reached"),
        (("--serve", "--variant", "no-such", "--sizes", "1"), "no variant 'no-such'"),
    ],
)
def test_what_makes_no_sense_is_one_line(bench_serve, options, message):
    assert_refused(bench_serve(*options), message)


def test_a_server_that_does_not_start_says_why(tiny, docs):
    with pytest.raises(BadInput, match=r"the server of no-such did not start: .*no-such"):
        bench_variants(tiny, docs, ["no-such"], LoadSettings(sizes=(1,), rate=5.0))


def test_ctrl_c_ends_the_command_and_its_server(tiny, rows):
    run = "from xopt.cli.main import main; main()"
    options = ["bench", str(tiny.path), "--data", str(rows), "--serve", "--seconds", "60"]
    with subprocess.Popen(
        [sys.executable, "-c", run, *options, "--sizes", "1"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            line = next(line for line in process.stderr or () if "clients" in line)
            assert line
            os.killpg(process.pid, signal.SIGINT)
            rest = process.stderr.read() if process.stderr else ""
            assert process.wait(30) == 130
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert "Interrupted" in rest
    assert "Traceback" not in rest


def test_requests_hold_a_querys_own_documents_first_and_none_twice():
    rows = tuple(Row(f"q{n // 3}", f"query {n // 3}", str(n), f"text {n}") for n in range(9))
    requests = requests_of(Candidates("data", rows), [2, 5])
    assert len(requests) == 6
    for request in requests:
        texts = [text for _, text in request.pairs]
        number = int(request.pairs[0][0].split()[1])
        own = [f"text {n}" for n in range(3 * number, 3 * number + 3)]
        assert texts[:3] == own[: len(texts)][:3]
        assert len(set(texts)) == len(texts) == request.documents
        assert json.loads(request.body)["documents"] == texts
    with pytest.raises(BadInput, match="9 different documents"):
        requests_of(Candidates("data", rows), [10])


def test_the_search_ends_near_the_highest_rate_that_keeps_the_time():
    nothing = SizeSummary(0, 0, 0, 0, 0, 0)
    summary = Summary(0, 0, 0, 0, 0, 0, 0, 0, nothing, (), 0, 0)
    tried = search(lambda rate: ServedLoad(rate, rate <= 30, summary), 64)
    assert [load.rate for load in tried] == [32, 16, 24, 28]
