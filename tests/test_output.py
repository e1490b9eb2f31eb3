"""What is printed: no figure is cut, whatever the width; nothing is lost for an encoding."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from xopt.cli.output import Output

BARE_ENVIRONMENT = {"PATH": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
ROWS = [
    {
        "variant/strategy": "torch-fp32/default",
        "speed": "1.00 x",
        "pairs/s": "28.1",
        "tau-b": "1.000\n[0.990, 1.000]",
        "document": "a text of many words that may be wrapped",
    },
    {
        "variant/strategy": "onnx-int8/planned",
        "speed": "12.34 x",
        "pairs/s": "1,249.5",
        "tau-b": "0.972\n[0.961, 0.980]",
        "document": "another " * 20,
    },
]


def captured_output(width: int) -> tuple[Output, io.StringIO]:
    output = Output(None)
    stream = io.StringIO()
    output.console = Console(file=stream, width=width, highlight=False)
    return output, stream


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_no_figure_is_cut_at_any_width(width: int) -> None:
    output, stream = captured_output(width)
    output.table("title", ROWS, wrapped=("document",))
    shown = stream.getvalue()
    assert "…" not in shown
    for row in ROWS:
        figures = [cell for column, cell in row.items() if column != "document"]
        for figure in figures:
            assert all(part in shown for part in figure.split("\n"))
        assert all(word in shown.split() for word in row["document"].split())


def test_a_row_may_lack_columns() -> None:
    output, stream = captured_output(width=80)
    output.table("title", [{"": "all", "pairs": "10"}, {"": "now", "pairs": "2", "seconds": "1.5"}])
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert lines[1:4] == [["pairs", "seconds"], ["all", "10"], ["now", "2", "1.5"]]


def test_a_text_does_not_steer_the_terminal() -> None:
    output, stream = captured_output(width=80)
    output.line("a \x1b[31m b \x00 c\td")
    output.table("title", [{"a": "x\x1b[2J", "b": "y\x9b"}])
    assert not {"\x1b", "\x00", "\x9b"} & set(stream.getvalue())


def test_json_is_the_same_in_every_encoding(tmp_path: Path) -> None:
    name = b"caf\xe9.run"  # no UTF-8
    (tmp_path / "a.run").write_text(
        "".join(f"Zürich {q}\tQ0\td{d}\t0\t{d + q}\tany\n" for q in range(12) for d in range(5)),
        "utf-8",
    )
    (tmp_path / os.fsdecode(name)).write_text(
        "".join(f"Zürich {q}\tQ0\td{d}\t0\t{d - q}\tany\n" for q in range(12) for d in range(5)),
        "utf-8",
    )
    command = [
        sys.executable,
        "-c",
        "from xopt.cli.main import main; main()",
        "validate",
        "--reference",
        "a.run",
        "--scores",
    ]
    done = subprocess.run(
        [*command, os.fsdecode(name), "--json", "-"],
        cwd=tmp_path,
        env={**BARE_ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert json.loads(done.stdout)["judged"][1]["name"] == os.fsdecode(name)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_output_in_any_encoding_loses_nothing(tmp_path: Path, encoding: str) -> None:
    run = "".join(f"q{q} Q0 d{d} 0 {d + q} any\n" for q in range(12) for d in range(5))
    (tmp_path / "a.run").write_text(run)
    command = "from xopt.cli.main import main; main()"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            command,
            "validate",
            "--scores",
            "a.run",
            "--reference",
            "a.run",
            "--json",
            "a.json",
        ],
        cwd=tmp_path,
        env={**BARE_ENVIRONMENT, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"tau-b" in done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["passed"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
@pytest.mark.parametrize(("redirection", "code"), [(">&-", 0), ("> /dev/full", 2)])
def test_a_closed_or_full_output_is_no_traceback_and_the_json_is_there(
    tmp_path: Path, redirection: str, code: int
) -> None:
    (tmp_path / "a.run").write_text(
        "".join(f"q{q} Q0 d{d} 0 {d + q} any\n" for q in range(12) for d in range(5))
    )
    command = (
        f"{sys.executable} -c 'from xopt.cli.main import main; main()' "
        "validate --scores a.run --reference a.run"
    )
    done = subprocess.run(
        f"{command} --json a.json {redirection}",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert json.loads((tmp_path / "a.json").read_text())["passed"]
