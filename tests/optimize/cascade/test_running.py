from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import daft
import numpy as np
import pytest
from click.testing import Result
from helpers.recorder import Recorder
from threadpoolctl import threadpool_info

from xopt.cli.output import plain
from xopt.optimize.cascade.certify import Certified, certify
from xopt.optimize.cascade.check import check
from xopt.optimize.cascade.parts import candidate_lists
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.optimize.report.page import gather, render
from xopt.runtime import open_cascade, open_scorer, rerank, rerank_files
from xopt.runtime.bench.bench import Case, bench
from xopt.runtime.bench.in_daft import run_strategy
from xopt.runtime.bench.strategy import ScorerSpec
from xopt.runtime.cascade.cascade import Cascade, Lists, Ranked
from xopt.runtime.cascade.evidence import EvidenceSource
from xopt.runtime.cascade.fingerprint import LEXICON, model_fingerprint
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.frames.cascade import _Group
from xopt.runtime.progress import listening

Xopt = Callable[..., Result]


def test_a_check_reports(certified: tuple[ModelFolder, Certified], unseen: Candidates) -> None:
    recorder = Recorder()
    with listening(recorder):
        check(certified[0], unseen)
    (step,) = recorder.titled("cascade --check")
    assert (step.done, step.total) == (2, 2)
    (ranking,) = recorder.titled("the cascade ranks")
    assert (ranking.done, ranking.total) == (16, 16)
    assert ("cascade --check", "the cascade ranks", "onnx-int8 scores") in recorder.stacks


def test_queries_rank_the_same_alone_and_together(
    certified: tuple[ModelFolder, Certified], unseen: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = open_cascade(certified[0])
    lists = candidate_lists(unseen)
    together = scorer.rank_all(lists)
    # two queries, and others as those are done
    monkeypatch.setattr("xopt.runtime.cascade.cascade.PAIRS_AT_ONCE", 60)
    for one, other in zip(together, scorer.rank_all(lists), strict=True):
        assert one.ranking.tolist() == other.ranking.tolist()
        assert np.allclose(one.scores, other.scores, atol=1e-4, equal_nan=True)
    everything = open_scorer(certified[0], "onnx-int8").score(unseen.pairs).reshape(-1, 25)
    for number, (query, documents) in enumerate(zip(lists.queries, lists.documents, strict=True)):
        alone = scorer.rank(query, documents, top_k=5)
        assert [each["corpus_id"] for each in alone] == together[number].ranking[:5].tolist()
        scored = np.isfinite(together[number].scores)
        assert np.abs(together[number].scores - everything[number])[scored].max() < 1e-4
    assert scorer.rank("a query", []) == []
    assert scorer.rank("a query", ["one document"])[0]["corpus_id"] == 0
    ranked = scorer.rank(lists.queries[0], lists.documents[0])
    left_out = [each["score"] is None for each in ranked]
    assert left_out == sorted(left_out)


def test_a_cascade_goes_with_the_variant_and_the_files_that_it_was_certified_with(
    copied: ModelFolder, calibration: Candidates
) -> None:
    (copied.path / LEXICON).write_bytes(b"changed")
    with pytest.raises(BadInput, match=r"sha256 differs .* make it again with `xopt cascade"):
        open_cascade(copied)
    again = quantize(copied, recipe_for(detect_target()), calibration)
    with pytest.raises(BadInput, match="has no cascade; make one with `xopt cascade"):
        open_cascade(again)


def test_a_cascade_is_nothing_to_jobs_that_go_without(
    tiny: ModelFolder, certified: tuple[ModelFolder, Certified]
) -> None:
    assert LEXICON in certified[0].manifest.files
    prints = [
        model_fingerprint(folder, "onnx-int8", cascade=False) for folder in (tiny, certified[0])
    ]
    assert prints[0] == prints[1] != model_fingerprint(certified[0], "onnx-int8", cascade=True)


def test_the_first_stage_s_scores_are_asked_for(
    tiny_copy: ModelFolder, queries: Candidates
) -> None:
    ranked = {
        row: -float(place)
        for rows in queries.groups().values()
        for place, row in enumerate(queries.rows[rows])
    }
    scored = Candidates(
        "scored", tuple(replace(row, first_score=ranked[row]) for row in queries.rows)
    )
    assert certify(
        tiny_copy, scored, "onnx-int8", first="given", column="bm25", max_loss=0.5, confidence=0.8
    ).cascade
    scorer = open_cascade(tiny_copy.path)
    assert scorer.rank("a query", ["b", "c"], first_scores=[2, 1])
    for scores, message in (
        (None, "needs the first stage's"),
        ([1.0], "one finite"),
        ([1.0, np.nan], "one finite"),
    ):
        with pytest.raises(BadInput, match=message):
            scorer.rank("a query", ["b", "c"], first_scores=scores)
    frame = daft.from_pylist(
        [{"query_id": "q", "query": "a", "text": t, "bm25": s} for t, s in (("b", 1), ("c", 2.5))]
    )
    assert rerank(frame, tiny_copy.path, cascade=True, first="bm25").count_rows() == 2
    with pytest.raises(BadInput, match="column 'bm25' is of String, not of numbers"):
        texts = frame.with_column("bm25", daft.col("bm25").cast(daft.DataType.string()))
        rerank(texts, tiny_copy.path, cascade=True, first="bm25")
    with pytest.raises(BadInput, match="goes by a column of scores, as 'bm25'"):
        rerank(frame, tiny_copy.path, cascade=True)
    replaced = frame.select("query_id", "query", "text", daft.col("bm25").alias("score"))
    found = rerank(
        replaced, tiny_copy.path, cascade=True, first="score", overwrite=True
    ).to_pydict()
    assert (
        found["score"]
        == rerank(frame, tiny_copy.path, cascade=True, first="bm25").to_pydict()["score"]
    )
    with pytest.raises(
        BadInput, match="first-stage scores, as 'bm25' was; give data that has it, not demo"
    ):
        bench(ModelFolder.open(tiny_copy.path), queries, [Case("onnx-int8", "cascade")])
    # two queries
    backwards = [replace(row, first_score=-float(ranked[row])) for row in queries.rows[:50]]
    for few in (Candidates("few", tuple(scored.rows[:50])), Candidates("few", tuple(backwards))):
        spec = ScorerSpec(str(tiny_copy.path), "onnx-int8", "cascade", None)
        timed = run_strategy(
            spec, few.pairs, by_query=([row.query_id for row in few.rows], few.first_scores)
        )
        expected = np.concatenate([each.scores for each in scorer.rank_all(candidate_lists(few))])
        assert np.allclose(timed().scores, expected, atol=1e-4, equal_nan=True)


def test_a_dataframe_is_ranked_by_the_cascade(
    certified: tuple[ModelFolder, Certified], unseen: Candidates, caplog: pytest.LogCaptureFixture
) -> None:
    folder = certified[0]
    rows = []
    for number, row in enumerate(unseen.rows):
        texts = {"query_id": row.query_id, "query": row.query, "text": row.text}
        rows.append({"id": number, **texts, "tags": [number]})
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    mixed.sort(key=lambda row: row["id"] % 25)  # a query's candidates lie apart, in their order
    mixed += [
        {**rows[0], "id": -1, "text": None, "tags": []},
        {"id": -2, "query_id": None, "query": "nobody's", "text": "a text", "tags": None},
        {"id": -3, "query_id": None, "query": "nobody else's", "text": "a text", "tags": None},
    ]
    found = {
        row["id"]: row
        for row in rerank(daft.from_pylist(mixed), folder.path, cascade=True).to_pylist()
    }
    assert len(found) == len(mixed)
    assert (found[-1]["score"], found[-1]["rank"]) == (None, 26)
    assert "rows of this worker have a null text" in caplog.text
    for number in (-2, -3):
        assert found[number]["score"] is None
        assert found[number]["rank"] is None
        assert found[number]["text"] == "a text"
    by_text = rerank(
        daft.from_pylist(rows[:50]), folder.path, cascade=True, query_id="query"
    ).to_pylist()
    assert {row["id"]: row["rank"] for row in by_text} == {i: found[i]["rank"] for i in range(50)}
    for rows_of, ranked in zip(
        unseen.groups().values(),
        open_cascade(folder).rank_all(candidate_lists(unseen)),
        strict=True,
    ):
        got = [found[number] for number in range(rows_of.start, rows_of.stop)]
        assert [row["tags"] for row in got] == [[row["id"]] for row in got]
        assert np.argsort([row["rank"] for row in got]).tolist() == ranked.ranking.tolist()
        scores = np.array([np.nan if row["score"] is None else row["score"] for row in got])
        assert np.allclose(scores, ranked.scores, atol=1e-4, equal_nan=True)


def test_rows_that_come_in_another_order_are_put_in_that_of_the_first_stage() -> None:
    """Daft's own runner keeps the order, and Ray need not."""
    group = _Group(
        "q",
        ["data"] * 4,
        ["third", "first", None, "second"],
        [30, 10, 40, 20],
        [0.1, 0.3, 0.0, 0.2],
    )
    assert group.documents == ["first", "second", "third"]
    assert group.first_scores == pytest.approx([0.3, 0.2, 0.1])
    found = Ranked(np.array([2, 0, 1]), np.array([5.0, np.nan, 7.0], np.float32))
    assert group.filled(found) == ([7.0, 5.0, None, None], [1, 2, 4, 3])


def test_files_are_ranked_by_the_cascade(
    certified: tuple[ModelFolder, Certified], unseen: Candidates, tmp_path: Path
) -> None:
    folder = certified[0].path
    rows = [{"query_id": row.query_id, "query": row.query, "text": row.text} for row in unseen.rows]
    rows.insert(3, {**rows[3], "text": None})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = rerank_files(folder, [tmp_path / "in.jsonl"], tmp_path / "out.jsonl", cascade=True)
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (out[3]["score"], out[3]["rank"]) == (None, 26)
    del out[3]
    skipped = 0
    for rows_of, ranked in zip(
        unseen.groups().values(),
        open_cascade(folder).rank_all(candidate_lists(unseen)),
        strict=True,
    ):
        got = out[rows_of]
        assert np.argsort([row["rank"] for row in got]).tolist() == ranked.ranking.tolist()
        scores = np.array([np.nan if row["score"] is None else row["score"] for row in got])
        assert np.allclose(scores, ranked.scores, atol=1e-4, equal_nan=True)
        skipped += int(np.isnan(ranked.scores).sum())
    assert (made.counts.skipped, made.counts.null, made.counts.not_finite) == (skipped, 1, 0)
    with pytest.raises(BadInput, match="its cascade goes without `first=`"):
        rerank_files(
            folder, [tmp_path / "in.jsonl"], tmp_path / "b.jsonl", cascade=True, first="text"
        )


def test_a_dataframe_that_does_not_fit_is_refused(
    certified: tuple[ModelFolder, Certified], tiny: ModelFolder
) -> None:
    folder = certified[0].path
    frame = daft.from_pydict({"query_id": ["a", "a"], "query": ["x", "y"], "text": ["b", "c"]})
    with pytest.raises(BadInput, match="has no cascade"):
        rerank(frame, tiny.path, cascade=True)
    with pytest.raises(BadInput, match="no column 'topic'"):
        rerank(frame, folder, cascade=True, query_id="topic")
    with pytest.raises(
        BadInput, match=r"variant='onnx-fp32': a cascade was certified as it is, with onnx-int8"
    ):
        rerank(frame, folder, "onnx-fp32", cascade=True)
    with pytest.raises(BadInput, match="first='bm25': its cascade goes without"):
        rerank(frame, folder, cascade=True, first="bm25")
    with pytest.raises(Exception, match="query id 'a' stands for several queries"):
        rerank(frame, folder, cascade=True).collect()


def test_the_bench_runs_the_cascade(
    xopt: Xopt, tiny_copy: ModelFolder, queries: Candidates, tmp_path: Path
) -> None:
    certified = certify(tiny_copy, queries, "onnx-int8", max_loss=0.5, confidence=0.8)
    arguments = ("--strategy", "planned", "--strategy", "cascade", "--pairs", 60, "--repeat", 1)
    out = tmp_path / "bench.json"
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(asdict(row)) + "\n" for row in queries.rows))
    result = xopt(
        "bench", tiny_copy.path, "--data", data, "--variant", "onnx-int8", *arguments, "--json", out
    )
    assert result.exit_code == 0, result.output
    cases = {
        f"{m['case']['variant']}/{m['case']['strategy']}": m
        for m in json.loads(out.read_text())["measured"]
    }
    assert set(cases) == {"torch-fp32/default", "onnx-int8/planned", "onnx-int8/cascade"}
    cascaded = cases["onnx-int8/cascade"]["cascaded"]
    assert 0.3 < cascaded["share"] < 1
    assert (len(cascaded["losses"]), cascaded["seen"]) == (2, 2)  # whole queries
    assert "on 2 queries, 2 of which made the cascade." in " ".join(result.stdout.split())
    assert "times onnx-int8/planned; loss against FP32" in result.stdout
    measured = json.loads(out.read_text())
    of_optimize = {"cascade": {"certified": plain(certified), "bench": measured}}
    for results in ([measured], [measured, of_optimize]):
        for markdown in (False, True):
            page = render(gather(results), None, markdown)
            assert "With fewer pairs" in page
            assert f"{np.mean(cascaded['losses']):.4f}" in page
            assert ("ertified" in page) == (len(results) == 2)
    nothing_safe = {"certified": {"cascade": None}, "bench": None}
    assert "Score everything" in render(
        gather([measured, {"cascade": nothing_safe}]), None, markdown=False
    )
    refused = xopt("bench", tiny_copy.path, "--variant", "onnx-fp32", "--strategy", "cascade")
    assert (refused.exit_code, "scores with onnx-int8" in refused.stderr) == (2, True)


def test_a_bench_goes_without_a_cascade_that_it_cannot_read_unless_asked_for_it(
    xopt: Xopt, tiny_copy: ModelFolder
) -> None:
    tiny_copy.write(lambda manifest: replace(manifest, cascade={"order": {}}))
    nowhere = xopt("bench", tiny_copy.path, "--data", "none.jsonl")
    assert (nowhere.exit_code, "none.jsonl: no such file" in nowhere.stderr) == (2, True)
    assert "without the cascade" in nowhere.stderr
    asked = xopt("bench", tiny_copy.path, "--data", "none.jsonl", "--strategy", "cascade")
    assert (asked.exit_code, "its cascade is damaged" in asked.stderr) == (2, True)


def test_the_command(
    xopt: Xopt, tiny_copy: ModelFolder, queries: Candidates, tmp_path: Path, unseen: Candidates
) -> None:
    certify(tiny_copy, queries, "onnx-int8", max_loss=0.5, confidence=0.8)
    data = tmp_path / "rows.jsonl"
    out = tmp_path / "found.json"
    lines = []
    for number, row in enumerate(unseen.rows):
        texts = {"query_id": row.query_id, "query": row.query, "text": row.text}
        lines.append(json.dumps({**texts, "doc_id": row.doc_id, "bm25": -number % 25}))
    data.write_text("\n".join(lines))
    held = xopt("cascade", tiny_copy.path, "--data", data, "--check", "--json", out)
    assert held.exit_code == 0, held.output
    assert "The certificate holds" in held.stdout
    assert json.loads(out.read_text())["queries"] == 16
    few = xopt("cascade", tiny_copy.path, "--data", data)
    assert (few.exit_code, "it takes 299" in few.stderr) == (2, True)
    assert "give more queries, or --max-loss " in few.stderr
    loose = ("--max-loss", 0.5, "--in-expectation")
    made = xopt("cascade", tiny_copy.path, "--data", data, "--first", "bm25", *loose)
    assert made.exit_code == 0, made.output
    assert (
        "Certificate: on queries like those of rows.jsonl, 25 candidates each, at most 0.5"
        in made.stdout
    )
    assert "rank(query, documents, top_k=10, first_scores=scores)" in "".join(
        made.stdout.splitlines()
    )
    assert Cascade.of(ModelFolder.open(tiny_copy.path)).certificate.column == "bm25"
    by_cascade = ("--cascade", "--first", "bm25", "--dry-run")
    seen = xopt("rerank", tiny_copy.path, data, "-o", tmp_path / "out.jsonl", *by_cascade)
    assert (seen.exit_code, "pairs a second in a sample" in seen.stdout) == (0, True)
    missing = xopt("cascade", tiny_copy.path, "--data", data, "--first", "tfidf", "--max-loss", 0.5)
    assert (missing.exit_code, "no column 'tfidf', only" in missing.stderr) == (2, True)
    unknown = xopt("cascade", tiny_copy.path, "--first", tmp_path, "--data", data)
    assert (unknown.exit_code, "no model folder; make one with `xopt export" in unknown.stderr) == (
        2,
        True,
    )
    mixed = xopt("cascade", tiny_copy.path, "--data", data, "--check", "--top", 5)
    assert mixed.exit_code == 2


def test_a_cheaper_model_s_score_that_is_not_finite_puts_its_document_first(
    tiny: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = open_scorer(tiny, "onnx-int8")
    cheaper = open_scorer(tiny, "onnx-fp32")

    def ranking(logits: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(logits)) == 2, np.nan, np.arange(len(logits))).astype(
            np.float32
        )

    source = EvidenceSource(scorer, "model", model=cheaper, ranking=ranking)
    lists = Lists(["a query", "another", "none"], [["one", "two"], ["three", "four"], []])
    columns = [evidence.features[:, -1].tolist() for evidence, _ in source.collect(lists)]
    assert columns == [[0, 1], [3, 3], []]
    assert "1 of 4 scores of the cheaper model are not finite" in caplog.text


def test_what_is_cut_is_counted(certified: tuple[ModelFolder, Certified]) -> None:
    scorer = open_cascade(certified[0])
    scorer.rank("a query", ["word " * 2000, "a document"])
    assert scorer.stages.truncated == 1


def test_more_than_was_certified_is_warned_of(
    certified: tuple[ModelFolder, Certified], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = certified[0].path
    rows = [{"query_id": "q", "query": "data", "text": "a"}]
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    scorer = open_cascade(folder)
    for ask in (
        lambda top_k: scorer.rank("data", ["a", "b"], top_k=top_k),
        lambda top_k: rerank(daft.from_pylist(rows), folder, cascade=True, top_k=top_k),
        lambda top_k: rerank_files(
            folder, [file], tmp_path / f"{top_k}.jsonl", cascade=True, top_k=top_k
        ),
    ):
        caplog.clear()
        ask(10)
        assert "its certificate" not in caplog.text
        ask(11)
        assert "the best 11 are asked for; its certificate is of 10" in caplog.text


def test_no_lists_are_no_work(certified: tuple[ModelFolder, Certified]) -> None:
    assert open_cascade(certified[0]).rank_all(Lists([], [])) == []


def test_a_cascade_holds_blas_to_its_threads(
    certified: tuple[ModelFolder, Certified], unseen: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = open_cascade(certified[0], threads=1)
    collect = scorer.evidence_source.collect
    seen: set[int] = set()

    def watched(lists: Lists) -> object:
        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        seen.update(pool["num_threads"] for pool in pools)
        return collect(lists)

    monkeypatch.setattr(scorer.evidence_source, "collect", watched)
    scorer.rank_all(candidate_lists(unseen))
    assert seen == {1}
