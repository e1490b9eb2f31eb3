"""Steps say how far they are and how long the rest takes, and only where somebody listens."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.recorder import Recorder

from xopt.runtime import open_scorer, rerank_files
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.folder import ModelFolder
from xopt.runtime.progress import Lines, Step, listening, progress


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time_of_steps(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("xopt.runtime.progress.time", made)
    return made


def test_time_left_goes_by_the_work_and_counts_down(time_of_steps: Clock) -> None:
    step = Step("onnx-int8 scores", 100, "pairs", work=4000)
    assert str(step) == "onnx-int8 scores: 0 of 100 pairs, 0.0 s so far"
    time_of_steps.now += 60
    step.advance(10, work=1000)  # the longest come first
    assert str(step) == "onnx-int8 scores: 10 of 100 pairs, 0.2 a second, 3 min left"
    assert step.share == 0.25
    time_of_steps.now += 120
    assert step.left_s == pytest.approx(60)
    time_of_steps.now += 61  # it takes longer than that: nobody knows
    assert step.left_s is None
    assert str(step) == "onnx-int8 scores: 10 of 100 pairs, 4 min so far"


def test_less_than_a_second_tells_no_rate(time_of_steps: Clock) -> None:
    step = Step("rounding weights", 10, "products", work=10)
    time_of_steps.now += 0.5
    step.advance()
    assert step.left_s is None


def test_what_was_done_before_is_no_part_of_the_rate(time_of_steps: Clock) -> None:
    step = Step("rerank", 1000, "pairs", work=500, done=500)
    assert step.share == 0.5
    time_of_steps.now += 100
    step.advance(250)
    assert (step.share, step.left_s) == (0.75, pytest.approx(100))
    assert str(step) == "rerank: 750 of 1,000 pairs, 2.5 a second, 2 min left"


def test_parts_and_a_limit_are_said_without_an_estimate(time_of_steps: Clock) -> None:
    parts = Step("export", 4, "steps")
    parts.begin("loading")
    assert (str(parts), parts.share) == ("export, loading: 1 of 4 steps, 0.0 s so far", None)
    time_of_steps.now += 20
    parts.begin("writing the graph")
    assert (str(parts), parts.share) == (
        "export, writing the graph: 2 of 4 steps, 20 s so far",
        None,
    )
    limited = Step("validate", unit="pairs", limit_s=600)
    time_of_steps.now += 120
    limited.advance(3200)
    assert (str(limited), limited.share) == (
        "validate: 3,200 pairs, 2 min of 10 min",
        None,
    )


def test_steps_are_closed_by_errors_and_forgotten_without_a_listener() -> None:
    recorder = Recorder()
    with listening(recorder):
        with pytest.raises(KeyboardInterrupt), progress("outer"), progress("inner"):
            raise KeyboardInterrupt
        assert recorder.steps == []
    with progress("nobody listens") as step:
        step.advance()
    assert [each.title for each in recorder.closed_steps] == ["inner", "outer"]
    assert step.done == 1


def test_lines_come_from_a_step_that_says_nothing_by_itself() -> None:
    lines: list[str] = []
    written = threading.Event()

    def write(line: str) -> None:
        lines.append(line)
        written.set()

    with listening(Lines(write, every_s=0.02)):
        time.sleep(0.1)
        assert lines == []  # no step is open
        with progress("export", 4, "steps") as step, progress("inner"):
            step.begin("writing the graph")
            written.clear()
            assert written.wait(10)
    outer, inner = lines[-1].split(" > ")
    assert outer.startswith("export, writing the graph: 1 of 4 steps, ")
    assert inner.startswith("inner: ")
    count = len(lines)
    with progress("after the end"):
        time.sleep(0.1)
    assert len(lines) == count


def test_callers_of_several_threads_are_all_counted() -> None:
    step = Step("scores", 8000, "pairs", work=8000)
    threads = [
        threading.Thread(target=lambda: [step.advance() for _ in range(1000)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (step.done, step.worked) == (8000, 8000)


@pytest.mark.parametrize("variant", ["onnx-fp32", "torch-fp32"])
def test_scorers_report_every_pair_and_token(
    tiny: ModelFolder, docs: Candidates, variant: str
) -> None:
    scorer = open_scorer(tiny, variant)
    expected = scorer.score(docs.pairs)
    tokens = scorer.encode(docs.pairs)
    recorder = Recorder()
    with listening(recorder):
        found = scorer.score(docs.pairs)
        scorer.score_tokens(tokens)
        assert scorer.logits([]).shape == (0,)
    assert np.array_equal(found, expected)
    distinct = len(set(docs.pairs))
    one, other, _ = recorder.titled(f"{variant} scores")
    assert (one.done, one.total, one.worked) == (distinct, distinct, one.work)
    assert (other.done, other.worked) == (len(docs.pairs), int(tokens.lengths.sum()))


def test_the_reference_reports_and_promises_nothing(tiny: ModelFolder, docs: Candidates) -> None:
    recorder = Recorder()
    scorer = ReferenceScorer(tiny, tiny.variant("torch-fp32"), 1)
    with listening(recorder):
        scorer.score(docs.pairs)
    (step,) = recorder.titled("sentence-transformers scores")
    assert (step.done, step.total, step.work) == (len(docs.pairs), len(docs.pairs), None)


def test_a_job_reports_its_rows(tiny: ModelFolder, docs: Candidates, tmp_path: Path) -> None:
    recorder = Recorder()
    rows = [f'{{"query": "{row.query_id}", "text": "{row.doc_id}"}}\n' for row in docs.rows]
    (tmp_path / "in.jsonl").write_text("".join(rows))
    with listening(recorder):
        rerank_files(tiny.path, tmp_path / "in.jsonl", tmp_path / "out.jsonl", variant="onnx-fp32")
    (job,) = recorder.titled("rerank")
    assert (job.done, job.total, job.work) == (len(rows), len(rows), len(rows))
    assert ("rerank", "onnx-fp32 scores") in recorder.stacks
