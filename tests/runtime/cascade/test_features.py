from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import KINDS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xopt.optimize.export import export
from xopt.runtime.cascade.features import (
    TEXT_FEATURES,
    Bags,
    Lexicon,
    given_features,
    term_vectors,
    text_features,
)
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.encode import Encoder

rng = np.random.default_rng(0)
made = rng.normal(size=(50, 8))
LEXICON = Lexicon(
    (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32),
    np.linspace(0.1, 3, 50).astype(np.float32),
)
NAMES = (
    "BM25",
    "BM25 a query's weight",
    "nearest",
    "nearest, unweighted",
    "nearest of the worst",
    "nearest^4",
    "soft count",
    "found",
    "found, unweighted",
    "log length",
    "nearest in the lead",
    "likeness",
)
ids = st.lists(st.integers(0, 49), max_size=40).map(lambda values: np.array(values, np.int64))


@given(ids, st.lists(ids, min_size=1, max_size=6))
def test_features_are_finite_and_those_of_each_document_alone(
    query: np.ndarray, documents: list[np.ndarray]
) -> None:
    found = text_features(query, Bags.of(documents, LEXICON), LEXICON)
    assert len(NAMES) == TEXT_FEATURES
    assert found.shape == (len(documents), TEXT_FEATURES + 8)
    assert np.isfinite(found).all()
    alone = text_features(query, Bags.of(documents[:1], LEXICON), LEXICON)
    # which goes by the mean length
    others = [i for i, name in enumerate(NAMES) if not name.startswith("BM25")]
    assert np.allclose(found[0, others], alone[0, others], atol=1e-4)


def test_a_document_that_has_the_query_stands_before_one_that_has_not() -> None:
    query = np.array([40, 41, 42])
    there = np.array([1, 40, 41, 42, 2])
    elsewhere = np.array([1, 3, 4, 5, 2])
    found = text_features(query, Bags.of([there, elsewhere], LEXICON), LEXICON)
    for name in (
        "BM25",
        "nearest",
        "nearest of the worst",
        "soft count",
        "found",
        "nearest in the lead",
    ):
        assert found[0, NAMES.index(name)] > found[1, NAMES.index(name)]
    assert found[0, NAMES.index("found, unweighted")] == 1


@given(st.lists(ids, min_size=1, max_size=6))
def test_documents_have_in_common_what_they_share_of_their_words(
    documents: list[np.ndarray],
) -> None:
    vectors = term_vectors(Bags.of([*documents, documents[0]], LEXICON), LEXICON)
    common = (vectors @ vectors.T).toarray()
    assert (common <= 1 + 1e-9).all()
    assert np.allclose(common[0, -1], 1 if len(documents[0]) else 0)  # a copy
    for number, document in enumerate(documents[1:], 1):
        assert (common[0, number] > 0) == bool(set(document.tolist()) & set(documents[0].tolist()))


@given(st.lists(ids, min_size=1, max_size=6))
def test_bags_count_the_tokens_of_documents_and_of_their_leads(documents: list[np.ndarray]) -> None:
    bags = Bags.of(documents, LEXICON)
    assert bags.counts.shape == bags.leads.shape == (len(documents), len(bags.tokens))
    for row, document in enumerate(documents):
        own = document if len(document) else np.zeros(1, np.int64)
        assert bags.lengths[row] == len(document)
        for counts, part in ((bags.counts, own), (bags.leads, own[:24])):
            there = np.repeat(bags.tokens, counts[row].toarray()[0].astype(int))
            assert there.tolist() == sorted(part.tolist())


def test_the_place_and_the_score_of_the_first_stage() -> None:
    assert given_features(3, None).shape == (3, 2)
    with_scores = given_features(3, np.array([2.0, 1.0, 3.0], np.float32))
    assert with_scores[:, 2].tolist() == [2, 1, 3]
    # by score, wherever a document stands
    assert np.allclose(with_scores[:, 0], np.log1p([1, 2, 0]))


def test_a_damaged_lexicon_is_refused(tmp_path: Path) -> None:
    LEXICON.save(tmp_path / "lexicon")
    kept = Lexicon.load(tmp_path / "lexicon")
    assert np.abs(kept.embeddings - LEXICON.embeddings).max() < 1e-3
    (tmp_path / "lexicon").write_bytes(b"no")
    with pytest.raises(BadInput, match="damaged"):
        Lexicon.load(tmp_path / "lexicon")


VOCABULARY = (
    "search",
    "engine",
    "ranking",
    "models",
    "a",
    "query",
    "and",
    "document",
    "text",
    "data",
)
words = st.lists(st.sampled_from(VOCABULARY), max_size=90)


@settings(max_examples=25)
@example(["data"] * 90, [[], ["a", "text"]])
@given(words, st.lists(words, min_size=1, max_size=4))
def test_parts_of_pairs_are_the_query_and_each_document(
    tiny: ModelFolder, query: list[str], documents: list[list[str]]
) -> None:
    """Of short ones, of documents that are cut, and of queries that are cut too."""
    encoder = Encoder(tiny)
    pairs = [(" ".join(query), " ".join(document)) for document in documents]
    tokens = encoder.encode(pairs)
    _, parts = encoder.parts(pairs, tokens.ids)
    for pair, part in zip(pairs, parts, strict=True):
        sides = np.array(encoder.encodings([pair])[0].sequence_ids)
        assert part.tolist() == np.array(encoder.encodings([pair])[0].ids)[sides == 1].tolist()


@pytest.mark.parametrize("kind", ["roberta", "qwen3, LogitScore"])
def test_parts_of_other_layouts(kind: str, tmp_path: Path) -> None:
    encoder = Encoder(
        export(str(KINDS[kind](tmp_path / "model")), tmp_path / "out", torch_only=True)
    )
    pairs = [("search engine", "ranking models"), ("search engine", "")]
    query, (document, empty) = encoder.parts(pairs, encoder.encode(pairs).ids)
    assert encoder.tokenizer.decode(query.tolist()).split() == ["search", "engine"]
    assert encoder.tokenizer.decode(document.tolist()).split() == ["ranking", "models"]
    assert len(empty) == 0
    half = [("search engine", "half of an emoji \ud83d")]
    assert len(encoder.parts(half, encoder.encode(half).ids)[1][0])
