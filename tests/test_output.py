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

COLUMNS = ["variant/strategy", "speed", "pairs/s", "tau-b", "document"]
ROWS = [
    [
        "torch-fp32/default",
        "1.00 x",
        "28.1",
        "1.000\n[0.990, 1.000]",
        "a text of many words that may be wrapped",
    ],
    ["onnx-int8/planned", "12.34 x", "1,249.5", "0.972\n[0.961, 0.980]", "another " * 20],
]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_no_figure_is_cut_at_any_width(width: int) -> None:
    output, stream = Output(None), io.StringIO()
    output.console = Console(file=stream, width=width, highlight=False)
    output.table("title", COLUMNS, ROWS, left=("document",))
    shown = stream.getvalue()
    assert "…" not in shown
    for row in ROWS:
        for cell in row[:-1]:
            assert all(part in shown for part in cell.split("\n"))
    words = [word for row in ROWS for word in row[-1].split()]
    assert all(word in shown.split() for word in words)


def test_a_text_does_not_steer_the_terminal() -> None:
    output, stream = Output(None), io.StringIO()
    output.console = Console(file=stream, width=80, highlight=False)
    output.line("a \x1b[31m b \x00 c\td")
    output.table("title", ["a", "b"], [["x\x1b[2J", "y\x9b"]])
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
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
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
        env={"PYTHONIOENCODING": encoding, "PATH": ""},
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
    command = f"{sys.executable} -c 'from xopt.cli.main import main; main()' validate --scores a.run --reference a.run"
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
