"""What takes a CrossEncoder of sentence-transformers takes xopt's, and finds the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import sentence_transformers
from beir.reranking import Rerank
from helpers.tiny import make_body, make_tiny
from rerankers import Document, Reranker
from sentence_transformers.cross_encoder import evaluation
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import mine_hard_negatives

from xopt import CrossEncoder
from xopt.integrations.rerankers import CrossEncoderRanker
from xopt.optimize.export import export
from xopt.optimize.model.parity import parity_pairs
from xopt.runtime.folder import ModelFolder

PAIRS = parity_pairs(40)
TEXTS = sorted({text for _, text in PAIRS if text.strip()})
QUERIES = ["ranking data", "search engine", "index of the data"]
Both = tuple[CrossEncoder, sentence_transformers.CrossEncoder]


@pytest.fixture(scope="module")
def both(tiny: ModelFolder) -> Both:
    return CrossEncoder(tiny.path), sentence_transformers.CrossEncoder(str(tiny.path), device="cpu")


@pytest.fixture(scope="module")
def both_of_three(tmp_path_factory: pytest.TempPathFactory) -> Both:
    root = tmp_path_factory.mktemp("three")
    model = str(make_tiny(root / "model", labels=3))
    made = export(model, root / "out", rank_label="none")
    return CrossEncoder(made.path), sentence_transformers.CrossEncoder(model, device="cpu")


def samples(documents: str) -> list[dict[str, Any]]:
    """Queries with two relevant texts each, and others."""
    return [
        {"query": query, "positive": TEXTS[row : row + 2], documents: TEXTS[row + 1 :]}
        for row, query in enumerate(QUERIES)
    ]


def reranking(_: Path) -> Any:
    return evaluation.CrossEncoderRerankingEvaluator(samples("documents"), write_csv=False)


def correlation(_: Path) -> Any:
    gold = [len(text) / 100 for _, text in PAIRS]
    return evaluation.CrossEncoderCorrelationEvaluator(PAIRS, gold, write_csv=False)


def classification(_: Path) -> Any:
    labels = [len(text) % 2 for _, text in PAIRS]
    return evaluation.CrossEncoderClassificationEvaluator(PAIRS, labels, write_csv=False)


def nano_beir(place: Path) -> Any:
    """The evaluator of NanoBEIR, on a data set of its shape."""
    relevant = {str(row): sample["positive"] for row, sample in enumerate(samples("documents"))}
    ids = {text: f"d{row}" for row, text in enumerate(TEXTS)}
    subsets: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"_id": ids[text], "text": text} for text in TEXTS],
        "queries": [{"_id": str(row), "text": query} for row, query in enumerate(QUERIES)],
        "qrels": [
            {"query-id": query, "corpus-id": ids[text]}
            for query, texts in relevant.items()
            for text in texts
        ],
        "bm25": [{"query-id": query, "corpus-ids": list(ids.values())} for query in relevant],
    }
    configs = []
    for name, rows in subsets.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        files = [{"split": "NanoMSMARCO", "path": f"{name}.jsonl"}]
        configs.append({"config_name": name, "data_files": files})
    card = f"---\n{json.dumps({'configs': configs})}\n---\n"
    (place / "README.md").write_text(card, encoding="utf-8")
    return evaluation.CrossEncoderNanoBEIREvaluator(
        ["msmarco"], dataset_id=str(place), rerank_k=20, write_csv=False
    )


@pytest.mark.parametrize("make", [reranking, correlation, classification, nano_beir])
def test_evaluators_find_the_same(both: Both, tmp_path: Path, make: Callable[[Path], Any]) -> None:
    mine, theirs = both
    evaluator = make(tmp_path)
    found = evaluator(mine)
    assert len(found) > 1
    assert found == pytest.approx(evaluator(theirs), abs=1e-4)


@pytest.mark.slow
def test_an_evaluator_of_several_labels_finds_the_same(both_of_three: Both) -> None:
    mine, theirs = both_of_three
    labels = [len(text) % 3 for _, text in PAIRS]
    evaluator = evaluation.CrossEncoderClassificationEvaluator(PAIRS, labels, write_csv=False)
    assert evaluator(mine) == pytest.approx(evaluator(theirs), abs=1e-4)


@pytest.mark.slow
def test_hard_negatives_are_the_same(both: Both, tmp_path: Path) -> None:
    body = make_body(tmp_path / "body", "bert", "feature-extraction")
    pooling = Pooling(body.get_embedding_dimension())
    finder = sentence_transformers.SentenceTransformer(modules=[body, pooling], device="cpu")
    rows = datasets.Dataset.from_dict({"query": QUERIES, "positive": TEXTS[: len(QUERIES)]})
    mined = [
        mine_hard_negatives(
            rows,
            finder,
            corpus=TEXTS,
            cross_encoder=model,  # which is asked only where a bound needs its scores
            absolute_margin=0.01,
            num_negatives=3,
            range_max=10,
            output_scores=True,
            verbose=False,
        )
        for model in both
    ]
    assert len(mined[0]) > 0
    for mine, theirs in zip(*mined, strict=True):
        assert mine.pop("scores") == pytest.approx(theirs.pop("scores"), abs=1e-4)
        assert mine == theirs


@pytest.mark.slow
def test_beir_reranks_the_same(both: Both) -> None:
    corpus = {text: {"title": "", "text": text} for text in TEXTS}
    queries = {str(row): query for row, query in enumerate(QUERIES)}
    first = {query: dict.fromkeys(TEXTS, 0.0) for query in queries}
    mine, theirs = (Rerank(model).rerank(corpus, queries, first, top_k=10) for model in both)
    for query in queries:
        assert mine[query] == pytest.approx(theirs[query], abs=1e-4)


@pytest.mark.slow
def test_rerankers_ranks_the_same(both: Both) -> None:
    model, _ = both
    mine = CrossEncoderRanker(model)
    theirs = Reranker(str(model.folder.path), model_type="cross-encoder", device="cpu", verbose=0)
    documents = [Document(text, doc_id=f"d{row}") for row, text in enumerate(TEXTS)]
    for docs in (documents, TEXTS, TEXTS[0]):
        found, expected = (ranker.rank(QUERIES[0], docs) for ranker in (mine, theirs))
        assert [each.doc_id for each in found] == [each.doc_id for each in expected]
        assert [each.score for each in found] == pytest.approx(
            [each.score for each in expected], abs=1e-4
        )
    assert [each.rank for each in mine.rank(QUERIES[0], TEXTS)] == [*range(1, len(TEXTS) + 1)]
    (alone,) = theirs.rank(QUERIES[0], TEXTS[:1])
    assert mine.score(QUERIES[0], TEXTS[0]) == pytest.approx(alone.score, abs=1e-4)
