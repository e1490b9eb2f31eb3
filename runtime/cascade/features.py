"""Cheap features of a query's candidates, from the tokens that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse

from xopt.runtime.errors import BadInput

__all__ = [
    "Bags",
    "Evidence",
    "Lexicon",
    "given_features",
    "term_vectors",
    "text_features",
]

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

TEXT_FEATURES = 12  # before the pooled embedding
BM25_K1 = 1.2
BM25_B = 0.75
SOFT_DECAY = 8.0  # how fast a near token's count falls with its distance
SAME_TOKEN = 0.999  # a token's cosine with itself, and hardly with any other
LEAD_TOKENS = 24  # the beginning of a document, often its title
TINY = 1e-6  # the least that a sum is divided by


@dataclass(frozen=True)
class Lexicon:
    """What is known of each token of a model.

    embeddings: float32[tokens, dimensions], the model's own, of unit length.
    weights: float32[tokens], inverse document frequencies.
    """

    embeddings: Floats
    weights: Floats

    @staticmethod
    def load(file: Path) -> Lexicon:
        """Read what `save` wrote. Raises BadInput if the file is damaged."""
        try:
            tensors = load_file(file)
            return Lexicon(tensors["embeddings"].astype(np.float32), tensors["weights"])
        except (SafetensorError, KeyError) as error:
            raise BadInput(
                f"{file}: damaged ({error}); make it again with `xopt cascade`"
            ) from error

    def save(self, file: Path) -> None:
        """Write the lexicon, the embeddings in half precision."""
        embeddings = self.embeddings.astype(np.float16)
        save_file({"embeddings": embeddings, "weights": self.weights}, file)


@dataclass(frozen=True)
class Evidence:
    """What is known of a query's candidates before the model scores them.

    features: float32[documents, features], the last `embedding` pooled ones.
    terms: `term_vectors`, None without texts.
    """

    features: Floats
    terms: sparse.csr_matrix | None = None
    embedding: int = 0


def given_features(documents: int, scores: Floats | None) -> Floats:
    """Return float32[documents, 2 or 3]: log rank, rank and, if given, score.

    Ranks are the first stage's: by score, else as documents stand.
    """
    ranks = np.arange(documents, dtype=np.float32)
    if scores is None:
        return np.stack([np.log1p(ranks), ranks / 100], 1)
    ranks[np.argsort(-scores, kind="stable")] = ranks.copy()
    return np.stack([np.log1p(ranks), ranks / 100, scores.astype(np.float32)], 1)


@dataclass(frozen=True)
class Bags:
    """How often each of a query's documents has each token.

    tokens: int64[tokens], the ids that occur.
    counts: float32[documents, tokens]; one token 0 for a document without tokens.
    leads: the same of the first `LEAD_TOKENS`.
    lengths: int64[documents].
    """

    tokens: Ids
    counts: sparse.csr_matrix
    leads: sparse.csr_matrix
    lengths: Ids

    @staticmethod
    def of(documents: Sequence[Ids], lexicon: Lexicon) -> Bags:
        """Count the tokens of documents, given as ids."""
        filled = [ids if len(ids) else np.zeros(1, np.int64) for ids in documents]
        # `np.unique` would sort, which takes longer.
        occurs = np.zeros(len(lexicon.weights), bool)
        occurs[np.concatenate(filled)] = True
        tokens = np.flatnonzero(occurs)
        column_of = np.cumsum(occurs) - 1
        rows = [column_of[ids] for ids in filled]
        leads = [columns[:LEAD_TOKENS] for columns in rows]
        return Bags(
            tokens=tokens,
            counts=_counts(rows, len(tokens)),
            leads=_counts(leads, len(tokens)),
            lengths=np.array([len(ids) for ids in documents]),
        )


def _counts(rows: Sequence[NDArray[np.intp]], tokens: int) -> sparse.csr_matrix:
    """Return float32[documents, tokens], of each document's columns."""
    columns = np.concatenate(rows)
    starts = np.cumsum([0, *map(len, rows)])
    ones = np.ones(len(columns), np.float32)
    counts = sparse.csr_matrix((ones, columns, starts), (len(rows), tokens))
    counts = counts.tocsc().tocsr()  # sorts each row in the time of a copy
    counts.sum_duplicates()
    return counts


def text_features(query: Ids, documents: Bags, lexicon: Lexicon) -> Floats:
    """Return float32[documents, 12 + dimensions]: what matches a query's ids.

    Exact matches: BM25 (Robertson et al. 1994) and coverage. Soft ones, by the cosine of word
    embeddings: the nearest token (MaxSim, arXiv:2004.12832), all near ones (kernels,
    arXiv:1706.06613). Last, the pooled embedding: a model likes some kinds of documents.
    """
    tokens = np.unique(query)
    lengths = np.maximum(documents.lengths, 1)
    if not len(tokens):
        width = TEXT_FEATURES + lexicon.embeddings.shape[1]
        return np.zeros((len(lengths), width), np.float32)
    cosines = lexicon.embeddings[tokens] @ lexicon.embeddings[documents.tokens].T
    nearest = _nearest(cosines, documents.counts)
    nearest_in_lead = _nearest(cosines, documents.leads)
    counts = (documents.counts @ (cosines > SAME_TOKEN).astype(np.float32).T).T
    nearness = np.exp(SOFT_DECAY * (cosines - 1))
    soft_counts = np.log1p((documents.counts @ nearness.T).T)
    weights = lexicon.weights[tokens]
    total_weight = max(float(weights.sum()), TINY)
    shares = weights / total_weight
    bm25 = weights @ _saturated(counts, lengths)
    query_embedding = lexicon.weights[query] @ lexicon.embeddings[query]
    pooled = _pooled(documents, lexicon)
    columns = (
        bm25,
        bm25 / total_weight,
        shares @ nearest,
        nearest.mean(0),
        nearest.min(0),
        shares @ nearest**4,
        shares @ soft_counts,
        shares @ (counts > 0),  # coverage
        (counts > 0).mean(0),
        np.log1p(lengths),
        shares @ nearest_in_lead,
        pooled @ query_embedding / max(float(np.linalg.norm(query_embedding)), TINY),
    )
    features: Floats = np.concatenate([np.stack(columns, 1), pooled], 1).astype(np.float32)
    return features


def _saturated(counts: Floats, lengths: Floats) -> Floats:
    """Return what BM25 makes of counts of terms, [tokens, documents]."""
    half = BM25_K1 * (1 - BM25_B + BM25_B * lengths / lengths.mean())
    saturated: Floats = counts * (BM25_K1 + 1) / (counts + half)
    return saturated


def term_vectors(documents: Bags, lexicon: Lexicon) -> sparse.csr_matrix:
    """Return float64[documents, terms]: the root of each token's weighted share.

    The product of two rows is the documents' affinity (Bhattacharyya 1943): what they have in
    common, of which no single word makes up much.
    """
    shares = documents.counts.astype(np.float64)
    tokens_a_row = np.diff(shares.indptr)
    shares.data *= lexicon.weights[documents.tokens][shares.indices]
    shares.data *= np.repeat(documents.lengths > 0, tokens_a_row)
    totals = np.maximum(np.asarray(shares.sum(1)).ravel(), 1e-9)
    shares.data = np.sqrt(shares.data / np.repeat(totals, tokens_a_row))
    return shares


def _nearest(cosines: Floats, documents: sparse.csr_matrix) -> Floats:
    """Return float32[query tokens, documents]."""
    by_entry = cosines[:, documents.indices]
    nearest: Floats = np.maximum.reduceat(by_entry, documents.indptr[:-1], axis=1)
    return nearest


def _pooled(documents: Bags, lexicon: Lexicon) -> Floats:
    """Return each document's mean embedding, weighted, of unit length."""
    weights = lexicon.weights[documents.tokens, None]
    sums = documents.counts @ (weights * lexicon.embeddings[documents.tokens])
    pooled: Floats = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), TINY)
    return pooled
