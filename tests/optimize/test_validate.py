from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.texts import shortened
from helpers.tiny import make_tiny
from onnx import numpy_helper

from xopt.optimize.export import export
from xopt.optimize.judge.statistics import FAILED, PASSED, UNDECIDED, Gate
from xopt.optimize.judge.verdict import GATES, gates_with, judge, not_repeatable
from xopt.optimize.validate import validate, validate_runs
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import Candidates, Row, demo_candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Plan


@pytest.mark.slow
def test_trained_variants_are_judged_and_their_noise_is_shown(
    demo: ModelFolder, docs: Candidates
) -> None:
    result = validate(demo, ["torch-fp32", "onnx-fp32", "onnx-int8"], docs)
    reference, exact, int8 = result.judged
    assert [judged.name for judged in result.judged] == ["torch-fp32", "onnx-fp32", "onnx-int8"]
    assert reference.max_difference == 0
    assert reference.noise is not None
    assert exact.noise is not None
    assert int8.noise is not None
    assert max(exact.max_difference, reference.noise, exact.noise, int8.noise) < 1e-4
    assert (reference.verdict, exact.verdict) == (PASSED, PASSED)
    assert exact.measures["tau"].mean > 0.99
    assert exact.losses == ()
    assert 0.8 < int8.measures["tau"].low < int8.measures["tau"].mean < 1
    assert int8.verdict == UNDECIDED  # eight queries are too few
    assert set(result.first_stage) == {"ndcg10", "mrr10", "recall10"}
    assert (result.queries, result.pairs, result.passed) == (8, 96, False)
    loss = int8.losses[0]
    assert loss.query == next(row.query for row in docs.rows if row.query_id == loss.query_id)
    assert sorted(document.reference_rank for document in loss.documents)[:10] == list(range(1, 11))
    assert sum(document.grade or 0 for document in loss.documents) <= 1
    assert {(document.doc_id, document.text) for document in loss.documents} <= {
        (r.doc_id, r.text) for r in docs.rows
    }


def scaled(graph: onnx.GraphProto) -> None:
    _change(graph, "layer.3/intermediate", "column_scales", change=lambda scales: scales / 8)


def shuffled(graph: onnx.GraphProto) -> None:
    def shuffle(table: np.ndarray) -> np.ndarray:
        table = table.copy()
        for token in (101, 102):  # [CLS] and [SEP], which every pair has
            table[token] = np.random.default_rng(0).permutation(table[token])
        return table

    _change(graph, "word_embeddings", "weight", change=shuffle)


def untyped(graph: onnx.GraphProto) -> None:
    _change(graph, "token_type_embeddings", "weight", change=lambda table: table[[0, 0]])


def inverted(graph: onnx.GraphProto) -> None:
    _change(graph, "classifier", "weight", change=np.negative)


def _change(
    graph: onnx.GraphProto, *parts: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = [tensor for tensor in graph.initializer if all(part in tensor.name for part in parts)]
    assert found, parts
    for tensor in found:
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))


@pytest.fixture(scope="module")
def queries() -> Candidates:
    return shortened(demo_candidates(queries=24, depth=20))


@pytest.fixture(scope="module")
def expected(demo: ModelFolder, queries: Candidates) -> np.ndarray:
    return open_scorer(demo.path, "onnx-fp32").score(queries.pairs)


def test_int8_as_it_should_be_fails_no_gate(
    demo: ModelFolder, queries: Candidates, expected: np.ndarray
) -> None:
    judged = judge(
        queries,
        expected,
        open_scorer(demo.path, "onnx-int8").score(queries.pairs),
        name="onnx-int8",
    )
    verdicts = {result.gate.measure: result.verdict for result in judged.gates}
    assert verdicts == {
        "tau": PASSED,
        "top10": PASSED,
        "dcg10_loss": PASSED,
        "ndcg10_drop": UNDECIDED,
    }
    assert judged.verdict == PASSED  # labels are too few to veto it


@pytest.mark.parametrize("damage", [scaled, shuffled, untyped, inverted])
def test_a_damaged_variant_fails(
    demo_copy: ModelFolder,
    queries: Candidates,
    expected: np.ndarray,
    damage: Callable[[onnx.GraphProto], None],
) -> None:
    path = demo_copy.path / demo_copy.variant("onnx-int8").file
    model = onnx.load(path)
    damage(model.graph)
    onnx.save(model, path)
    damaged = demo_copy.with_variant(demo_copy.variant("onnx-int8"))  # as if it were meant
    scores = open_scorer(damaged.path, "onnx-int8").score(queries.pairs)
    assert judge(queries, expected, scores, name="onnx-int8").verdict == FAILED


def test_the_reference_against_itself_passes_whatever_the_batches(
    demo: ModelFolder, docs: Candidates
) -> None:
    few = shortened(docs.cut(4).head(12))
    scorer = open_scorer(demo.path, "onnx-fp32")
    expected = scorer.score(few.pairs)
    for seed in range(20):
        random = np.random.default_rng(seed)
        order = random.permutation(len(few.rows))
        scores = np.empty_like(expected)
        planned = scorer.with_plan(Plan(1, 1, int(random.integers(1, 2048))))
        scores[order] = planned.score([few.pairs[i] for i in order])
        assert judge(few, expected, scores, name="itself").verdict == PASSED


@pytest.mark.parametrize(("bad", "why"), [(np.nan, "not finite"), (0.0, "constant")])
def test_scores_that_rank_nothing_fail_even_without_gates(
    docs: Candidates, bad: float, why: str
) -> None:
    expected = np.random.default_rng(0).normal(size=len(docs.rows)).astype(np.float32)
    judged = judge(docs, expected, np.full_like(expected, bad), [], name="broken")
    assert (judged.verdict, judged.broken) == (FAILED, why)


@pytest.mark.parametrize(("bound", "verdict"), [(0.0, UNDECIDED), (1.0, FAILED)])
def test_gates_are_bounds(tiny: ModelFolder, docs: Candidates, bound: float, verdict: str) -> None:
    result = validate(tiny, ["onnx-int8"], docs, [Gate("tau", bound)])
    assert result.judged[1].verdict == verdict


def test_bounds_replace_those_of_the_default_gates() -> None:
    gates = gates_with({"tau": 0.97}, graded=False)
    assert {gate.measure: gate.bound for gate in gates} == {g.measure: g.bound for g in GATES} | {
        "tau": 0.97
    }


def test_without_qrels_there_is_agreement_and_no_quality(
    tiny: ModelFolder, docs: Candidates
) -> None:
    result = validate(tiny, ["onnx-fp32"], Candidates("plain", docs.rows[:24]))
    assert result.first_stage == {}
    assert [g.gate.measure for g in result.judged[1].gates] == ["tau", "top10", "dcg10_loss"]
    assert "ndcg10" not in result.judged[1].measures
    assert result.passed


def test_models_of_several_labels_are_judged_by_label(tmp_path: Path, docs: Candidates) -> None:
    labels = export(
        str(make_tiny(tmp_path / "model", labels=3)), tmp_path / "out", rank_label="none"
    )
    result = validate(labels, ["onnx-fp32"], docs.head(36))
    exact = result.judged[1]
    assert (exact.verdict, set(exact.measures), exact.measures["labels"].mean) == (
        PASSED,
        {"labels"},
        1.0,
    )
    assert exact.max_difference < 1e-4
    expected = open_scorer(labels.path, "onnx-fp32").score(docs.pairs)
    mixed = np.roll(expected, 1, axis=1)
    assert judge(docs, expected, mixed, name="mixed").verdict == FAILED


def test_missing_variants_are_refused(tiny: ModelFolder, docs: Candidates) -> None:
    with pytest.raises(BadInput, match="no variant 'onnx-int4'"):
        validate(tiny, ["onnx-int4"], docs)


def write_run(file: Path, scores: np.ndarray) -> Path:
    lines = [
        f"q{q} Q0 d{d} 0 {score} any" for q, row in enumerate(scores) for d, score in enumerate(row)
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_runs_of_any_engine_are_judged(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(40, 30))
    reference = write_run(tmp_path / "reference.run", scores)
    close = write_run(tmp_path / "close.run", scores + random.normal(0, 0.02, scores.shape))
    far = write_run(tmp_path / "far.run", random.permuted(scores, axis=1))
    qrels = tmp_path / "qrels"
    qrels.write_text("".join(f"q{q} 0 d{row.argmax()} 1\n" for q, row in enumerate(scores)))
    assert validate_runs(reference, reference, qrels).passed
    agreed = validate_runs(reference, close, None)
    assert agreed.passed
    assert (agreed.queries, agreed.pairs, agreed.missing, agreed.extra) == (40, 1200, 0, 0)
    assert validate_runs(reference, far, None).judged[1].verdict == FAILED
    with pytest.raises(BadInput, match="the gate on dcg10_loss: takes logits"):
        validate_runs(reference, close, None, gates_with({"dcg10_loss": 0.001}, graded=False))
    judged = validate_runs(reference, far, qrels).judged[1]
    assert judged.measures["ndcg10_drop"].mean > 0.5
    assert judged.losses[0].ndcg10_drop == pytest.approx(1.0)


def test_what_a_run_lacks_comes_last_and_is_counted(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=(12, 30))
    reference = write_run(tmp_path / "reference.run", scores)
    last = [(q, int(row.argmin())) for q, row in enumerate(scores)]
    lines = [
        f"q{q} Q0 d{d} 0 {s} any"
        for q, row in enumerate(scores)
        for d, s in enumerate(row)
        if (q, d) not in last
    ]
    cut = tmp_path / "cut.run"
    cut.write_text("\n".join([*lines, "q0 Q0 unknown 1 99 any"]) + "\n")
    result = validate_runs(reference, cut, None)
    assert (result.missing, result.extra, result.passed) == (12, 1, True)
    assert result.judged[1].measures["tau"].mean == pytest.approx(1.0)
    cut.write_text("\n".join(line for line in lines if line.startswith("q0 ")) + "\n")
    assert validate_runs(reference, cut, None).judged[1].verdict == FAILED


def test_qrels_of_other_queries_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a.run", np.eye(3))
    (tmp_path / "qrels").write_text("other 0 d1 1\n")
    with pytest.raises(BadInput, match=r"qrels: judges none of the 3 queries"):
        validate_runs(run, run, tmp_path / "qrels")


def test_a_bound_on_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(BadInput, match="the gate on ndcg10_drop: there are no qrels"):
        gates_with({"ndcg10_drop": 0.01}, graded=False)
    with pytest.raises(BadInput, match="the gate on labels: a model with 1 label has"):
        gates_with({"labels": 0.9}, graded=False)
    with pytest.raises(BadInput, match="the gate on tau: a model with 3 labels has"):
        gates_with({"tau": 0.9}, graded=False, labels=3)


def test_a_candidate_a_query_shows_nothing() -> None:
    rows = tuple(Row(f"q{q}", "query", "d", "text") for q in range(40))
    random = np.random.default_rng(0)
    judged = judge(
        Candidates("test", rows), random.normal(size=40), random.normal(size=40), name="random"
    )
    assert (judged.verdict, judged.gates) == (UNDECIDED, ())


@pytest.mark.parametrize("candidates", range(2, 26))
def test_the_strictest_gate_passes_a_ranking_that_is_the_same(candidates: int) -> None:
    rows = tuple(
        Row(f"q{q}", "query", f"d{d}", "text") for q in range(10) for d in range(candidates)
    )
    scores = np.random.default_rng(0).normal(size=len(rows))
    judged = judge(
        Candidates("test", rows),
        scores,
        scores,
        gates_with({"tau": 1.0}, graded=False),
        name="same",
    )
    assert (judged.verdict, judged.losses) == (PASSED, ())


def test_a_gate_that_was_asked_for_holds_up_where_it_cannot_be_measured() -> None:
    rows = tuple(Row(f"q{q}", "query", f"d{d}", "text") for q in range(40) for d in range(8))
    expected = np.random.default_rng(0).normal(size=len(rows))
    close = expected + np.random.default_rng(1).normal(0, 1e-3, len(rows))
    eight, gates = Candidates("eight", rows), gates_with({"top10": 0.99}, graded=False)
    judged = judge(eight, expected, close, gates, name="close")
    assert (judged.verdict, judge(eight, expected, close, name="close").verdict) == (
        UNDECIDED,
        PASSED,
    )
    assert {g.gate.measure: g.verdict for g in judged.gates}["top10"] == UNDECIDED
    assert judge(eight, expected, expected, gates, name="same").verdict == PASSED


def test_a_pair_a_query_passes_on_many_only() -> None:
    """Where two labels in a hundred are others, more than half of such draws of 32 show none."""
    for queries, verdict in ((32, UNDECIDED), (200, PASSED)):
        single = Candidates(
            "single", tuple(Row(f"q{q}", "query", "d", "text") for q in range(queries))
        )
        expected = np.random.default_rng(0).normal(size=(queries, 3)).astype(np.float32)
        assert judge(single, expected, expected + np.float32(0.01), name="near").verdict == verdict


def test_a_run_that_lacks_a_document_is_not_the_same() -> None:
    one = Candidates("one", tuple(Row("q", "query", f"d{d}", "text") for d in range(30)))
    scores = np.arange(30.0)
    assert judge(one, scores, scores, name="same").verdict == PASSED
    assert (
        judge(one, scores, np.where(scores == 15, -np.inf, scores), name="lacking").verdict
        == UNDECIDED
    )


def noisy(pairs: int, labels: int = 1) -> tuple[Candidates, np.ndarray]:
    rows = tuple(Row(f"q{i // 8}", "query", f"d{i}", "text") for i in range(pairs))
    scores = np.random.default_rng(0).normal(size=(pairs, labels)).astype(np.float32)
    return Candidates("noise", rows), scores[:, 0] if labels == 1 else scores


@pytest.mark.parametrize("labels", [1, 2])
def test_scores_that_depend_on_their_company_fail(labels: int) -> None:
    candidates, scores = noisy(160, labels)
    near = scores + np.float32(1e-3)
    assert not_repeatable(candidates, scores, scores, near[:128], GATES) == ""
    moved = scores[:128].copy()
    moved[7] += 5
    assert "in other batches they differ by up to 5" in not_repeatable(
        candidates, scores, scores, moved, GATES
    )
    moved[7] = np.nan
    assert not_repeatable(candidates, scores, scores, moved, GATES) == "not finite in other batches"
    shaken = scores[:128] + np.random.default_rng(1).uniform(-0.8, 0.8, scores[:128].shape).astype(
        np.float32
    )
    measure = "tau" if labels == 1 else "labels"
    assert f"in other batches {measure} with themselves is" in not_repeatable(
        candidates, scores, scores, shaken, GATES
    )
    assert (
        judge(candidates, scores, scores, GATES, name="it", instability="not repeatable").verdict
        == FAILED
    )


def test_a_bound_that_is_no_number_is_refused() -> None:
    with pytest.raises(BadInput, match="the gate on tau: its bound is NaN"):
        gates_with({"tau": float("nan")}, graded=True)
