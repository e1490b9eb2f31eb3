from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from helpers.texts import shortened
from helpers.tiers import mostly_slow
from helpers.tiny import make_tiny

from xopt.optimize.cascade.attempt import try_cascade
from xopt.optimize.cascade.certify import (
    Certified,
    Terms,
    certify,
    cheapest,
    warn_if_all_relevant,
)
from xopt.optimize.cascade.check import certificate_gate, check
from xopt.optimize.cascade.fit import Query, fit_order
from xopt.optimize.cascade.parts import (
    ScoredCandidates,
    candidate_lists,
    preparing_queries,
    without_repeated_queries,
)
from xopt.optimize.cascade.walk import walk
from xopt.optimize.export import export
from xopt.optimize.judge.statistics import hold
from xopt.runtime import open_cascade, open_scorer
from xopt.runtime.cascade.cascade import Cascade
from xopt.runtime.cascade.features import Evidence
from xopt.runtime.cascade.loss import ranking_loss
from xopt.runtime.cascade.rule import PartialRanking, Rule
from xopt.runtime.data.candidates import Candidates, Row, demo_candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder

Xopt = Callable[..., Result]
LOOSE = {"max_loss": 0.1, "confidence": 0.8}  # which takes 16 queries


@pytest.mark.slow
def test_a_cascade_saves_pairs_and_says_what_it_loses(
    trained: tuple[ModelFolder, Certified],
) -> None:
    folder, found = trained
    assert found.cascade is not None
    own = found.cascade.certificate
    assert found.cascade == Cascade.of(folder)
    assert own.queries + found.chosen_with == len(own.seen) == 32
    assert 0 <= own.loss <= own.bound <= own.max_loss
    assert own.share == found.share.mean < 0.9
    assert {option.order for option in found.options} == {"given", "learned"}
    assert {option.rule for option in found.options} == {"gain", "depth", "score"}


@pytest.mark.parametrize("made", mostly_slow(["certified", "trained"], {"certified"}))
def test_what_runs_is_what_was_certified(
    made: str, queries: Candidates, request: pytest.FixtureRequest
) -> None:
    folder, found = request.getfixturevalue(made)
    assert found.cascade is not None
    judged = queries.split()[1]
    ranked = open_cascade(folder).rank_all(candidate_lists(judged))
    assert np.mean([np.isfinite(each.scores).mean() for each in ranked]) == pytest.approx(
        found.share.mean, abs=0.01
    )
    expected = open_scorer(folder).score(judged.pairs)
    losses = [
        ranking_loss(expected[rows], each.ranking, np.isfinite(each.scores), 10)
        for rows, each in zip(judged.groups().values(), ranked, strict=True)
    ]
    assert np.mean(losses) == pytest.approx(found.cascade.certificate.loss, abs=2e-3)


def test_walks_are_what_partial_rankings_do(certified: tuple[ModelFolder, Certified]) -> None:
    order = Cascade.of(certified[0]).order
    rng = np.random.default_rng(0)
    evidence = Evidence(rng.normal(size=(40, len(order.weights))).astype(np.float32))
    reference = order.predict(evidence.features) + rng.normal(size=40)
    query = Query(evidence, reference, reference + rng.normal(size=40) / 10)
    followed = walk(query, order, 10, "dcg")
    for rule in (
        Rule("gain", 0.01),
        Rule("gain", 0.2),
        Rule("depth", 17),
        Rule("score", float(reference.mean())),
    ):
        partial = PartialRanking(evidence, order, rule, 10, "dcg")
        while len(rows := partial.next_candidates()):
            partial.add_scores(rows, query.scores[rows].astype(np.float32))
        scored = np.isfinite(partial.scores)
        depth, loss = followed.stop(rule, 10)
        assert depth == scored.sum()
        assert loss == pytest.approx(
            ranking_loss(reference, partial.ranking(), scored, 10), abs=1e-6
        )
    assert followed.stop(Rule("gain", -1.0), 10)[0] == 40


def test_where_nothing_is_safe_everything_is_scored() -> None:
    """Random features, and a loss that no saving keeps."""
    rng = np.random.default_rng(0)
    queries = [
        Query(
            Evidence(rng.normal(size=(30, 3)).astype(np.float32)),
            (x := rng.normal(0, 4, size=30)),
            x,
        )
        for _ in range(300)
    ]
    order = fit_order(queries[:50], "given", False)
    walks = [walk(query, order, 10, "dcg") for query in queries[50:]]
    rules = [Rule("depth", float(depth)) for depth in (30, 15, 10)]
    # too few queries for so small a loss
    assert cheapest(walks, rules, 10, 0.001, 0.05, "dcg") == (rules[0], None)
    rule, losses = cheapest(walks, rules, 10, 0.02, 0.05, "dcg")
    assert rule == rules[0]
    assert losses is not None
    assert losses.max() < 1e-12  # sums of the same values in another order


def test_too_few_queries_are_known_before_the_work(
    tiny_copy: ModelFolder, queries: Candidates
) -> None:
    before = tiny_copy.manifest
    with pytest.raises(
        BadInput,
        match=r"26 queries .* takes 299 .*; give more queries, or `max_loss=0\.11` or more$",
    ):
        certify(tiny_copy, queries, "onnx-int8")
    with pytest.raises(BadInput, match="a single query; give more"):
        certify(tiny_copy, queries.between(0, 1), "onnx-int8", max_loss=0.5, confidence=None)
    with pytest.raises(BadInput, match="25 candidates a query"):
        certify(tiny_copy, queries, "onnx-int8", top=20, **LOOSE)
    assert ModelFolder.open(tiny_copy.path).manifest == before


def test_what_was_there_before_is_said_to_stay(
    tiny_copy: ModelFolder,
    queries: Candidates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loose = {"first": "given", "max_loss": 0.5, "confidence": 0.8}
    assert certify(tiny_copy, queries, "onnx-int8", **loose).cascade is not None
    folder = ModelFolder.open(tiny_copy.path)
    monkeypatch.setattr("xopt.optimize.cascade.certify.LEAST_SAVED", 1.0)
    assert certify(folder, queries, "onnx-int8", **loose).cascade is None
    assert "keeps the cascade that it had" in caplog.text
    assert ModelFolder.open(tiny_copy.path).manifest.cascade == folder.manifest.cascade


def test_queries_of_one_text_are_one(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        Row(f"{query} {of}", query, f"d{i}", "text")
        for of in range(3)
        for query in ("a", "b")
        for i in range(4)
    ]
    left = without_repeated_queries(Candidates("repeated", tuple(rows)))
    assert list(left.groups()) == ["a 0", "b 0"]
    assert "4 of 6 queries repeat the text of another" in caplog.text
    assert without_repeated_queries(left) is left


def test_queries_that_chose_the_variant_do_not_certify_it(tiny_copy: ModelFolder) -> None:
    before = preparing_queries(tiny_copy, "onnx-int8")
    found = {"here": {"recommended": "onnx-int8", "chosen_by": ["a", "b"], "variants": {}}}
    folder = tiny_copy.write(lambda manifest: replace(manifest, measured=found))
    assert preparing_queries(folder, "onnx-int8") == {*before, "a", "b"}
    assert not {"a", "b"} & preparing_queries(folder, "onnx-fp32")


@pytest.mark.parametrize(("logits", "warned"), [([-5.0, 0.0, 5.0], False), ([6.0, 7.0, 8.0], True)])
def test_a_loss_that_tells_nothing_is_warned_of(
    logits: list[float], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tuple(Row(query, query, str(i), "text") for query in "ab" for i in range(30))
    scores = np.array(np.repeat(logits, 10).tolist() * 2)
    warn_if_all_relevant(
        ScoredCandidates(Candidates("scored", rows), scores, scores, 1.0), Terms(max_loss=0.01)
    )
    assert ("says little" in caplog.text) == warned


@pytest.mark.parametrize("made", mostly_slow(["certified", "trained"], {"certified"}))
def test_a_certificate_holds_on_queries_like_its_own_and_not_on_others(
    made: str, unseen: Candidates, queries: Candidates, request: pytest.FixtureRequest
) -> None:
    folder, _ = request.getfixturevalue(made)
    held = check(folder, unseen)
    assert (held.result.verdict, held.seen) == ("pass", 0)
    with pytest.raises(BadInput, match="all its queries were seen"):
        check(folder, queries)


@pytest.mark.parametrize(
    ("measure", "losses", "verdict"),
    [
        ("dcg", [0.3], "undecided"),  # the mean is what was certified: a query may lose more
        ("dcg", [0.02, 0.021], "undecided"),
        ("dcg", [0.0] * 12, "undecided"),  # where one in twenty loses, twelve hardly show it
        ("dcg", [0.0] * 200, "pass"),
        ("dcg", [0.1, 0.2, 0.3, 0.2] * 8, "fail"),
        ("top", [0.0] * 100, "undecided"),
        ("top", [0.0] * 300, "pass"),
        ("top", [1.0, 0.0, 0.0] * 10, "fail"),
    ],
)
def test_few_queries_neither_show_nor_violate_a_certificate(
    certified: tuple[ModelFolder, Certified], measure: str, losses: list[float], verdict: str
) -> None:
    assert certified[1].cascade is not None
    certificate = replace(certified[1].cascade.certificate, measure=measure, max_loss=0.01)
    assert hold(certificate_gate(certificate), np.array(losses), same=False).verdict == verdict


@pytest.mark.slow
def test_a_violated_certificate_is_caught(
    demo_copy: ModelFolder, queries: Candidates, unseen: Candidates, calibration: Candidates
) -> None:
    """In the first stage's order; on the same queries, whose first stage then is turned round."""
    found = certify(demo_copy, queries, "onnx-int8", first="given", max_loss=0.2, confidence=0.8)
    assert found.cascade is not None
    folder = ModelFolder.open(demo_copy.path)
    turned = tuple(row for rows in unseen.groups().values() for row in unseen.rows[rows][::-1])
    violated = check(folder, Candidates("turned", turned))
    assert violated.result.verdict == "fail"
    assert violated.result.interval.mean > 0.2
    with pytest.raises(BadInput, match="all its queries were seen"):  # they made what scores
        check(folder, calibration)


@pytest.mark.slow
def test_a_cheaper_model_orders(
    demo: ModelFolder,
    demo_copy: ModelFolder,
    queries: Candidates,
    unseen: Candidates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same model stands for one that agrees well, and that it is no cheaper is let pass."""
    monkeypatch.setattr("xopt.optimize.cascade.certify.LEAST_SAVED", -9.0)
    found = certify(demo_copy, queries, "onnx-int8", first=str(demo.path), **LOOSE)
    assert found.cascade is not None
    assert (found.cascade.order.kind, found.cascade.order.variant) == ("model", "onnx-int8")
    scorer = open_cascade(demo_copy.path)
    assert scorer.evidence_source.shares_tokens
    ranked = scorer.rank_all(candidate_lists(unseen))
    assert np.mean([np.isfinite(each.scores).sum() for each in ranked]) < 16


def test_a_cheaper_model_has_tokens_of_its_own_and_may_not_change(
    tiny_copy: ModelFolder, queries: Candidates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(make_tiny(tmp_path / "model", architecture="roberta"))
    cheap = tmp_path / "cheap-xopt"
    export(other, cheap)
    loose = {"max_loss": 0.5, "confidence": 0.8}
    # it is no cheaper
    assert certify(tiny_copy, queries, "onnx-int8", first=str(cheap), **loose).cascade is None
    monkeypatch.setattr("xopt.optimize.cascade.certify.LEAST_SAVED", -99.0)
    assert certify(tiny_copy, queries, "onnx-int8", first=str(cheap), **loose).cascade is not None
    scorer = open_cascade(tiny_copy.path)
    assert not scorer.evidence_source.shares_tokens
    assert len(scorer.rank("search engine", ["ranking models", "a query"])) == 2
    moved = tmp_path / "moved"
    shutil.copytree(tiny_copy.path, moved / "tiny-xopt")
    shutil.move(cheap, moved / "cheap-xopt")
    assert open_cascade(moved / "tiny-xopt").evidence_source.model is not None
    with pytest.raises(BadInput, match="cheap-xopt: no such folder, nor one of that name beside"):
        open_cascade(tiny_copy.path)
    export(
        str(make_tiny(tmp_path / "another", architecture="roberta", intermediate_size=96)), cheap
    )
    with pytest.raises(BadInput, match="is not what the cascade of"):
        open_cascade(tiny_copy.path)


SPEEDS = {"onnx-int8": 1e4, "onnx-fp32": 1e4, "torch-fp32": 1e3}


def test_the_main_job_tries_no_cascade_on_few_candidates_or_for_too_long(
    tiny: ModelFolder, queries: Candidates
) -> None:
    # too few, and not deep enough
    assert try_cascade(tiny, queries, "onnx-int8", SPEEDS, 10, "cpu") is None
    deep = shortened(demo_candidates(queries=400, depth=50))
    assert try_cascade(tiny, deep, "onnx-int8", dict.fromkeys(SPEEDS, 1.0), 10, "cpu") is None


@pytest.mark.slow
def test_the_main_job_tries_a_cascade_where_the_data_are_a_case_for_one(
    tiny_copy: ModelFolder,
) -> None:
    deep = shortened(demo_candidates(queries=400, depth=50))
    tried = try_cascade(tiny_copy, deep, "onnx-int8", SPEEDS, 10, "cpu")
    assert tried is not None
    assert tried.certified.chosen_with == 64
    assert (tried.bench is None) == (tried.certified.cascade is None)
