"""What the command line shows of long work: bars on a terminal, lines elsewhere, or nothing."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from helpers.recorder import Recorder
from helpers.screen import screen
from helpers.tiny import make_tiny

from xopt.cli.progress import Bars, BarsHandler, listener_on
from xopt.runtime.folder import ModelFolder
from xopt.runtime.progress import Lines, listening, progress

Xopt = Callable[..., Result]

pty = pytest.importorskip("pty")  # Windows has none


class Terminal:
    """A pseudo-terminal, and what was written to it."""

    def __init__(self) -> None:
        self.ours, theirs = pty.openpty()
        self.stream = os.fdopen(theirs, "w", encoding="utf-8")

    def written(self) -> str:
        """Return what was written."""
        self.stream.flush()
        os.set_blocking(self.ours, False)
        text = b""
        try:
            while block := os.read(self.ours, 1 << 16):
                text += block
        except BlockingIOError:
            pass
        return text.decode().replace("\r\n", "\n").replace("\n", "\r\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal()
    yield made
    made.stream.close()
    os.close(made.ours)


def last_with(text: str, written: str, width: int) -> list[str]:
    """Return the lines of a screen as it last showed a text."""
    for end in range(len(written), 0, -1):
        lines = screen(written[:end], width)
        if any(text in line for line in lines):
            return [line for line in lines if line]
    raise AssertionError(f"{text!r} was never shown in {written!r}")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_bars_keep_to_a_line_each_and_leave_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("xopt.cli.progress.SETTLED_S", 0.0)
    listener = listener_on(terminal.stream)
    assert isinstance(listener, Bars)
    handler = BarsHandler(listener.console)
    record = logging.LogRecord("xopt", logging.INFO, "", 0, "what was found", (), None)
    with (
        listening(listener),
        progress("validate", unit="pairs", limit_s=600) as step,
        progress("onnx-int8 scores", 9000, "pairs", work=9000) as scoring,
    ):
        step.note = "onnx-int8 (2 of 5) on 64 of 200 queries"
        scoring.advance(3000)
        time.sleep(1.2)
        handler.handle(record)
        time.sleep(0.3)
        sys.stderr.write("what a library says\n")
    written = terminal.written()
    expected = {40: "33 %, ", 80: "3,000 of 9,000 pairs, ", 120: "━━━━"}[width]
    rows = last_with(expected, written, width)
    assert all(len(row) <= width for row in rows)
    outer, inner = [row for row in rows if "what" not in row]
    assert "validate" in outer
    assert "scores" in inner
    left = [line for line in screen(written, width) if line]
    assert left == ["what was found", "what a library says"]
    assert written.count("\x1b[?25h") == written.count("\x1b[?25l") == 1  # the cursor is back


@pytest.mark.parametrize("forced", ["", "1"])
def test_a_pipe_gets_lines_and_no_bars(monkeypatch: pytest.MonkeyPatch, forced: str) -> None:
    monkeypatch.setenv("FORCE_COLOR", forced)
    monkeypatch.setattr("xopt.cli.progress.EVERY_S", 0.05)
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream:
        listener = listener_on(stream)
        assert isinstance(listener, Lines)
        with listening(listener), progress("validate", unit="pairs") as step:
            step.advance(3200)
            time.sleep(0.3)
    with os.fdopen(read_end) as stream:
        lines = stream.read().splitlines()
    assert lines
    for line in lines:
        assert line.startswith("validate: 3,200 pairs, ")
        assert line.endswith(" s so far")


def test_a_terminal_without_movement_and_a_closed_pipe_get_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(listener_on(terminal.stream), Lines)
    stream = io.StringIO()
    listener = listener_on(stream)
    assert isinstance(listener, Lines)
    stream.close()
    listener.write("nobody reads this")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = ("search engine", "ranking models", "a query and a document", "text in brackets")
    lines = [
        json.dumps({"query_id": query, "query": f"{query} of data", "text": text}) + "\n"
        for query in ("ranking", "search")
        for text in texts
    ]
    path.write_text("".join(lines))
    return path


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """What a command reports."""
    made = Recorder()
    monkeypatch.setattr("xopt.cli.main.listener_on", lambda _: made)
    return made


def test_export_quantize_and_tune_report(
    xopt: Xopt, tiny_copy: ModelFolder, recorder: Recorder, tmp_path: Path, rows: Path
) -> None:
    assert xopt("export", make_tiny(tmp_path / "model"), "-o", tmp_path / "out").exit_code == 0
    (step,) = recorder.titled("export")
    assert (step.done, step.total, step.note) == (4, 4, "checking")
    assert xopt("quantize", tiny_copy.path, "--int8", "--data", rows).exit_code == 0
    assert ("making onnx-int8", "calibrating") in recorder.stacks
    assert ("making onnx-int8", "rounding weights") in recorder.stacks
    for title in ("calibrating", "rounding weights"):
        assert all(step.done == step.total for step in recorder.titled(title))
        assert all(step.worked == step.work for step in recorder.titled(title))
    tuned = xopt("tune", tiny_copy.path, "--variant", "onnx-int8", "--data", rows, "--threads", 1)
    assert tuned.exit_code == 0
    (step,) = recorder.titled("trying plans")
    assert (step.done, step.worked) == (step.total, step.work)
    assert ("tune", "trying plans", "onnx-int8 scores") in recorder.stacks


def test_steering_reports(xopt: Xopt, tiny_copy: ModelFolder, recorder: Recorder) -> None:
    gate = ("quantize", tiny_copy.path, "--int8", "--depth", 6, "--min-tau", 1, "--queries", 50)
    assert xopt(*gate).exit_code == 1
    (step,) = recorder.titled("steer")
    assert step.total is not None
    assert 3 < step.done <= step.total
    (products,) = recorder.titled("trying products")
    assert products.done == products.total
    assert ("steer", "trying products", "onnx-int8 scores") in recorder.stacks


def test_validate_reports(xopt: Xopt, tiny: ModelFolder, recorder: Recorder, rows: Path) -> None:
    result = xopt("validate", tiny.path, "--variant", "onnx-int8", "--data", rows, "--json", "-")
    (step,) = recorder.titled("validate")
    assert (step.limit_s, step.done) == (600, 2 * json.loads(result.stdout)["pairs"])
    assert step.note == "onnx-int8 (2 of 2) on 2 of 2 queries"
    assert ("validate", "onnx-int8 scores") in recorder.stacks
    assert ("validate", "sentence-transformers scores") in recorder.stacks


def test_bench_and_rerank_report(
    xopt: Xopt, tiny: ModelFolder, recorder: Recorder, tmp_path: Path, rows: Path
) -> None:
    arguments = ("--variant", "onnx-int8", "--strategy", "planned", "--data", rows)
    assert xopt("bench", tiny.path, *arguments, "--repeat", 2).exit_code == 0
    (step,) = recorder.titled("bench")
    assert (step.done, step.total) == (2, 2)
    (within,) = recorder.titled("round 2")
    assert (within.done, within.total, within.note) == (2, 2, "onnx-int8/planned")
    assert xopt("rerank", tiny.path, rows, "-o", tmp_path / "out.jsonl").exit_code == 0
    (step,) = recorder.titled("rerank")
    assert step.done == step.total == 8


def test_cascade_reports(xopt: Xopt, tiny_copy: ModelFolder, recorder: Recorder) -> None:
    data = ("--queries", 50, "--depth", 20)
    terms = ("--max-loss", 0.9, "--confidence", 0.5, "--first", "given")
    assert xopt("cascade", tiny_copy.path, *data, *terms).exit_code in (0, 1)
    (step,) = recorder.titled("cascade")
    assert (step.done, step.total, step.note) == (5, 5, "certifying")
    assert ("cascade", "trying the order given") in recorder.stacks
    for title in ("trying the order given", "stopping at each depth"):
        (inner,) = recorder.titled(title)
        assert inner.done == inner.total


@pytest.mark.slow
def test_shrink_reports(xopt: Xopt, tiny: ModelFolder, recorder: Recorder, tmp_path: Path) -> None:
    arguments = ("--layers", 1, "--minutes", 0.02, "--queries", 20, "--depth", 6)
    result = xopt("shrink", tiny.path, "-o", tmp_path / "small", *arguments)
    assert result.exit_code == 0, result.output
    (step,) = recorder.titled("shrink")
    assert (step.done, step.total, step.note) == (5, 5, "judging")
    (sets,) = recorder.titled("trying sets of layers")
    assert sets.done == sets.total
    (training,) = recorder.titled("training")
    assert training.work == pytest.approx(1.2)
    assert training.worked > 1.2
    assert training.note.startswith("loss ")


def test_quiet_shows_nothing_and_output_stays_as_it_is(
    xopt: Xopt, tiny: ModelFolder, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xopt.cli.progress.EVERY_S", 0.001)
    arguments = ("validate", tiny.path, "--variant", "onnx-int8", "--data", rows, "--json", "-")
    shown = xopt(*arguments)
    quiet = xopt("-q", *arguments)
    assert " so far" in shown.stderr
    assert " so far" not in quiet.stderr
    assert json.loads(shown.stdout) == json.loads(quiet.stdout)
