from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import Result
from helpers.texts import shortened
from helpers.tiers import mostly_slow
from helpers.tiny import KINDS, make_tiny

from xopt.optimize.cascade.certify import certify
from xopt.optimize.export import export
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.optimize.shrink import distil
from xopt.optimize.shrink.distil import batch
from xopt.optimize.shrink.layers import search_layers, sets_tried
from xopt.optimize.shrink.lists import (
    DOCUMENTS,
    FEWEST_WORDS,
    MOST_WORDS,
    POOL,
    draw_lists,
    in_turn,
    own_lists,
    rankable,
)
from xopt.optimize.shrink.shrink import _reloads, shrink
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import (
    Candidates,
    Row,
    demo_candidates,
    query_hash,
    read_candidates,
)
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.backends.network import Network, load_encoder
from xopt.runtime.scoring.encode import Encoder

Xopt = Callable[..., Result]
MINUTES = 2 / 60


@pytest.fixture(scope="module")
def queries() -> Candidates:
    """Of short texts: a model is trained on them."""
    return shortened(demo_candidates(queries=30, depth=12))


def test_the_best_set_of_layers_is_found() -> None:
    worth = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    assert search_layers(5, 3, lambda kept: float(worth[list(kept)].sum()))[0] == (0, 2, 4)
    many = np.random.default_rng(0).permutation(16).astype(float)  # too many sets to try them all
    tried = []

    def agreement(kept: tuple[int, ...]) -> float:
        tried.append(kept)
        return float(many[list(kept)].sum())

    fixed, _ = search_layers(5, 3, lambda kept: -float(worth[list(kept)].sum()), fixed=1)
    assert (fixed, sets_tried(5, 3, fixed=1)) == ((0, 1, 3), 6)
    assert search_layers(16, 5, lambda kept: float(sum(kept)), fixed=1)[0] == (0, 12, 13, 14, 15)
    kept, value = search_layers(16, 5, agreement)
    assert (len(tried), sets_tried(5, 3)) == (sets_tried(16, 5), 10)
    assert sorted(many[list(kept)]) == [11, 12, 13, 14, 15]
    assert value == sum(range(11, 16))


def test_lists_have_documents_of_their_query_and_sentences_those_that_are_like_them(
    queries: Candidates,
) -> None:
    lists = own_lists(queries, np.random.default_rng(0))
    assert {query for query, _ in lists} == {row.query for row in queries.rows}
    of = {(row.query, row.text) for row in queries.rows}
    assert all((query, text) in of for query, texts in lists for text in texts)
    assert sum(len(texts) for _, texts in lists) == len(queries.rows)
    drawn = draw_lists(queries, 40, np.random.default_rng(0))
    assert 10 < len(drawn) <= 40
    for query, texts in drawn:
        assert query in texts[0]
        assert FEWEST_WORDS <= len(query.split()) <= MOST_WORDS
        assert len(set(texts)) == len(texts) <= DOCUMENTS
    assert draw_lists(Candidates("one", queries.rows[:1]), 40, np.random.default_rng(0)) == []


def test_the_two_kinds_of_lists_come_in_turn_without_end() -> None:
    own = [("a", ["text"]), ("b", ["text"])]
    drawn = [("c", ["text"])]
    rng = np.random.default_rng(0)
    queries = [query for query, _ in itertools.islice(in_turn(own, drawn, rng), 8)]
    assert queries[1::2] == ["c"] * 4
    assert sorted(queries[:4:2]) == sorted(queries[4::2]) == ["a", "b"]
    assert next(in_turn(own, [], rng))[0] in ("a", "b")


TEXTS = [
    f"The {subject} engine ranks {thing}. A query finds the {thing} of every {subject}. "
    "It is short."
    for subject in ("search", "index", "table", "paper", "model", "score", "shard")
    for thing in (
        "documents",
        "passages",
        "tables",
        "sentences",
        "titles",
        "answers",
        "lists",
        "words",
    )
]


def test_documents_without_queries_and_with_one_each_are_ranked_by_bm25(
    queries: Candidates, tmp_path: Path
) -> None:
    assert rankable(queries) is queries
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    with pytest.raises(BadInput, match="no column 'query', only text"):
        read_candidates(str(file))
    with pytest.raises(BadInput, match="has no queries; leave out `depth=`"):
        read_candidates(str(file), documents=True, depth=10)
    drawn = rankable(read_candidates(str(file), documents=True))
    with file.open("a") as more:
        more.write(json.dumps({"query": "a query", "text": "a text"}) + "\n")
    with pytest.raises(BadInput, match=r"texts\.jsonl:1: query is None, not a query"):
        read_candidates(str(file), documents=True)
    groups = drawn.groups()
    assert len(groups) == 112  # two sentences each: the third has too few words
    assert {rows.stop - rows.start for rows in groups.values()} == {POOL}
    for rows in groups.values():
        assert any(row.query in row.text for row in drawn.rows[rows])
    held_out, learning = drawn.split()
    asked = {row.query for row in held_out.rows}
    lists = draw_lists(learning, 1000, np.random.default_rng(0), asked)
    assert lists
    assert not asked & {query for query, _ in lists}
    rows = tuple(Row(str(i), text.split(". ")[1], f"d{i}", text) for i, text in enumerate(TEXTS))
    pairs = rankable(Candidates("pairs", rows, {"3": {"d3": 1}}))
    assert list(pairs.groups()) == [row.query_id for row in rows]
    assert pairs.qrels == {"3": {"d3": 1}}
    for row in rows:
        own = [each.doc_id for each in pairs.rows[pairs.groups()[row.query_id]]]
        assert row.doc_id in own
        assert len(set(own)) == len(own) == POOL


def test_a_few_queries_of_several_documents_do_not_stand_for_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Pairs of a query and what answers it, where some are answered twice."""
    rows = [Row(str(i), text.split(". ")[1], f"d{i}", text) for i, text in enumerate(TEXTS)]
    twice = replace(rows[9], query_id="5", query=rows[5].query)
    mostly_one = Candidates("pairs", (*rows[:6], twice, *rows[6:]))
    found = rankable(mostly_one)
    assert {rows.stop - rows.start for rows in found.groups().values()} == {POOL}
    own = [row.doc_id for row in found.rows[found.groups()["5"]]]
    assert {"d5", "d9"} <= set(own)
    assert len(set(own)) == POOL
    assert "left out" not in caplog.text
    two = [each for row in rows for each in (row, replace(row, doc_id="x", text="x"))]
    mostly_two = Candidates("lists", tuple(two[:-1]))
    left = rankable(mostly_two)
    assert left.rows == mostly_two.rows[:-1]
    assert "1 of 56 queries have one document, and are left out" in caplog.text


def test_sentences_of_chinese_and_japanese_are_queries() -> None:
    texts = [
        f"第{i}个文档说明搜索引擎如何排列结果。日本語の文章も検索できます。" for i in range(60)
    ]
    rows = tuple(Row("", "", str(i), text) for i, text in enumerate(texts))
    lists = draw_lists(Candidates("texts", rows), 50, np.random.default_rng(0))
    assert lists
    assert all(query in documents[0] and query.endswith("。") for query, documents in lists)


@pytest.mark.parametrize("kind", ["bert", "qwen3, LogitScore", "modernbert, modules, cls"])
def test_batches_are_read_as_scorers_read_them(kind: str, tmp_path: Path) -> None:
    folder = export(str(KINDS[kind](tmp_path / "model")), tmp_path / "out", torch_only=True)
    pairs = [
        ("search engine", "ranking models"),
        ("search engine", "a query and a document of text data"),
    ]
    inputs, sizes = batch([("search engine", [text for _, text in pairs])], Encoder(folder), "cpu")
    assert sizes == [2]
    with torch.inference_mode():
        logits = Network(load_encoder(folder.path)).eval()(**inputs)[:, 0].numpy()
    assert np.abs(logits - open_scorer(folder, "torch-fp32").score(pairs)).max() < 1e-4


@pytest.mark.slow
def test_a_shrunk_model_learns_and_is_a_model_folder_like_any_other(
    demo: ModelFolder,
    queries: Candidates,
    tmp_path: Path,
    calibration: Candidates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # a second a step: however slow the machine is, it learns as much
    ticks = itertools.count()
    monkeypatch.setattr(distil, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    found = shrink(demo, tmp_path / "small", 3, queries, minutes=0.3)
    assert len(found.kept) == 3
    assert found.distilled.last_loss < 0.8 * found.distilled.first_loss
    small = ModelFolder.open(tmp_path / "small")
    assert json.loads((small.path / "config.json").read_text())["num_hidden_layers"] == 3
    held_out, learned = queries.split()
    assert set(small.manifest.trained_with) == {query_hash(row.query) for row in learned.rows}
    assert not {query_hash(row.query) for row in held_out.rows} & set(small.manifest.trained_with)
    assert found.measures["tau"].queries == found.queries == len(held_out.groups())
    assert set(found.measures) == {"tau", "top10", "dcg10_loss", "ndcg10", "full_ndcg10"}
    assert found.measures["tau"].mean > found.untrained
    again = export(str(small.path), tmp_path / "again", torch_only=True)
    assert again.manifest.trained_with == small.manifest.trained_with
    small = quantize(small, recipe_for(detect_target()), calibration)
    pairs = held_out.pairs[:4]
    assert (
        np.abs(open_scorer(small, "onnx-int8").score(pairs) - open_scorer(small).score(pairs)).max()
        < 3
    )
    with pytest.raises(BadInput, match="0 queries are left to certify by"):
        certify(demo, learned, "onnx-int8", first=str(small.path), max_loss=0.3, confidence=0.5)


SHRUNK = (
    "deberta-v2",
    "modernbert",
    "distilbert",
    "llama, head of 3 labels",
    "qwen3, LogitScore",
    "roberta, modules, 3 labels",
)


@pytest.mark.parametrize("kind", mostly_slow(SHRUNK, {"distilbert", "llama, head of 3 labels"}))
def test_every_kind_is_shrunk(kind: str, tmp_path: Path, queries: Candidates) -> None:
    labels = "1-0" if "3 labels" in kind else None
    folder = export(
        str(KINDS[kind](tmp_path / "model")), tmp_path / "out", torch_only=True, rank_label=labels
    )
    found = shrink(folder, tmp_path / "small", 1, queries, minutes=MINUTES)
    small = ModelFolder.open(tmp_path / "small")
    assert small.manifest.rank_label == folder.manifest.rank_label
    scores = open_scorer(small, "torch-fp32").score([("search engine", "ranking models")])
    assert np.isfinite(scores).all()
    assert found.distilled.steps > 0


def test_what_cannot_be_shrunk_is_refused(
    tiny: ModelFolder, queries: Candidates, tmp_path: Path, xopt: Xopt
) -> None:
    for layers in (2, 3):
        with pytest.raises(BadInput, match=f"`layers={layers}`: .* has 2; keep at least one"):
            shrink(tiny, tmp_path / "small", layers, queries)
    with pytest.raises(BadInput, match="a single query"):
        shrink(tiny, tmp_path / "small", 1, queries.between(0, 1))
    with pytest.raises(BadInput, match="is the model that is to be shrunk"):
        shrink(tiny, tiny.path, 1, queries, force=True)
    with pytest.raises(BadInput, match="most queries have one document, and BM25 finds"):
        shrink(tiny, tmp_path / "small", 1, queries.cut(1))
    (tmp_path / "there").mkdir()
    with pytest.raises(BadInput, match="exists already"):
        shrink(tiny, tmp_path / "there", 1, queries)
    albert = export(
        str(make_tiny(tmp_path / "albert", architecture="albert")),
        tmp_path / "out",
        torch_only=True,
    )
    with pytest.raises(BadInput, match="albert has no list of 2 layers"):
        shrink(albert, tmp_path / "small", 1, queries)
    several = export(
        str(make_tiny(tmp_path / "several", labels=3)),
        tmp_path / "three",
        torch_only=True,
        rank_label="none",
    )
    with pytest.raises(BadInput, match="has 3 labels, and none that ranks"):
        shrink(several, tmp_path / "small", 1, queries)
    assert not (tmp_path / "small").exists()
    assert xopt("shrink", tiny.path, "--layers", 1).exit_code == 2


def test_layers_of_a_kind_by_their_place_are_seen(tmp_path: Path) -> None:
    """ModernBERT's every second layer sees a window here: alone it would see everything, unless
    config.json says so.
    """
    made = make_tiny(
        tmp_path / "model",
        architecture="modernbert",
        num_hidden_layers=3,
        global_attn_every_n_layers=2,
    )
    folder = export(str(made), tmp_path / "out", torch_only=True)
    pairs = [("search engine", "ranking models of text data and " * 8)]
    # as transformers 5 writes it
    placed = "layer_types" in json.loads((folder.path / "config.json").read_text())
    assert _reloads(folder, (1,), pairs) == placed
    assert _reloads(folder, (0,), pairs)
