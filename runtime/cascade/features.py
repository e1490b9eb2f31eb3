"""Cheap features of a query's candidates, from the tokens that the model reads: what a learned
order goes by.
"""

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
    "GIVEN",
    "TEXT",
    "Bags",
    "Evidence",
    "Lexicon",
    "given_features",
    "term_vectors",
    "text_features",
]

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

GIVEN = ("log rank", "rank")  # and the first stage's score, where it is given
TEXT = (
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
)  # and after these the document's pooled embedding
K1, B = 1.2, 0.75  # of BM25
SOFT = 8.0  # how fast a neighbour's count falls with its distance
SAME = 0.999  # the cosine of a token with itself, and of hardly another
LEAD = 24  # tokens that a document begins with: a title, often


@dataclass(frozen=True)
class Lexicon:
    """What is known of tokens: embeddings float32[tokens, dimensions] of unit length, weights
    float32[tokens].

    The embeddings are the model's own for words, centred and reduced; the weights are inverse
    document frequencies.
    """

    embeddings: Floats
    weights: Floats

    @staticmethod
    def load(file: Path) -> Lexicon:
        """Read what `save` wrote. Raises BadInput where it is damaged."""
        try:
            tensors = load_file(file)
            return Lexicon(tensors["embeddings"].astype(np.float32), tensors["weights"])
        except (SafetensorError, KeyError) as error:
            raise BadInput(
                f"{file}: damaged ({error}); make it again with `xopt cascade`"
            ) from error

    def save(self, file: Path) -> None:
        """Write it, the embeddings in half precision."""
        save_file({"embeddings": self.embeddings.astype(np.float16), "weights": self.weights}, file)


@dataclass(frozen=True)
class Evidence:
    """What is known of a query's candidates before the model scores them.

    features: float32[documents, features], of which the last `embedding` are the document's
    pooled embedding. terms: float64[documents, terms], rows of unit length, None where the order
    goes by no texts.
    """

    features: Floats
    terms: sparse.csr_matrix | None = None
    embedding: int = 0


def given_features(documents: int, scores: Floats | None) -> Floats:
    """float32[documents, 2 or 3]: the place in the first stage's order and, where it is given,
    its score.

    With scores that order is by them, highest first, else it is the order in which the documents
    stand.
    """
    ranks = np.arange(documents, dtype=np.float32)
    if scores is None:
        return np.stack([np.log1p(ranks), ranks / 100], 1)
    ranks[np.argsort(-scores, kind="stable")] = ranks.copy()
    return np.stack([np.log1p(ranks), ranks / 100, scores.astype(np.float32)], 1)


@dataclass(frozen=True)
class Bags:
    """The tokens of a query's documents: int64[tokens], all that there are; float32[documents,
    tokens], how often each.

    leads: float32[documents, tokens], the same of a document's first `LEAD`. lengths:
    int64[documents]. A document of no tokens stands with one token 0, and has the length 0.
    """

    tokens: Ids
    counts: sparse.csr_matrix
    leads: sparse.csr_matrix
    lengths: Ids

    @staticmethod
    def of(documents: Sequence[Ids], lexicon: Lexicon) -> Bags:
        """Of the ids of each document's tokens, all of which the lexicon has."""
        held = [ids if len(ids) else np.zeros(1, np.int64) for ids in documents]
        flat = np.concatenate([*held, np.empty(0, np.int64)])
        there = np.zeros(len(lexicon.weights), bool)
        there[flat] = True
        tokens, place = np.flatnonzero(there), (np.cumsum(there) - 1)[flat]
        lengths = np.array([len(ids) for ids in held], np.int64)
        ends = np.cumsum(lengths)
        first = np.arange(len(flat)) - np.repeat(ends - lengths, lengths) < LEAD
        leads = _counted(place[first], np.minimum(lengths, LEAD), len(tokens))
        return Bags(
            tokens,
            _counted(place, lengths, len(tokens)),
            leads,
            np.array([len(ids) for ids in documents]),
        )


def _counted(place: NDArray[np.intp], lengths: Ids, tokens: int) -> sparse.csr_matrix:
    """float32[documents, tokens], how often each document has each token, of their places one
    behind another.
    """
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    counts = sparse.csr_matrix(
        (np.ones(len(place), np.float32), place, bounds), (len(lengths), tokens)
    )
    counts = counts.tocsc().tocsr()  # sorts each row, in the time of a copy
    counts.sum_duplicates()
    return counts


def text_features(query: Ids, documents: Bags, lexicon: Lexicon) -> Floats:
    """float32[documents, 12 + dimensions]: how much of the query each document has, in words and
    in kind; and its kind.

    `query` holds the ids of its tokens. The first columns are those of `TEXT`. Matches are exact
    (BM25, Robertson et al. 1994; coverage) and soft, by the cosine of word embeddings: of each
    token of the query the nearest one of the document (MaxSim, as in Khattab and Zaharia 2020,
    arXiv:2004.12832, of tokens without context), and all near ones (as kernels count them in
    Xiong et al. 2017, arXiv:1706.06613). The others are the weighted mean of the document's
    embeddings: a model likes some kinds of documents, whatever the query.
    """
    tokens, lengths = np.unique(query), np.maximum(documents.lengths, 1)
    if not len(tokens):
        return np.zeros((len(lengths), len(TEXT) + lexicon.embeddings.shape[1]), np.float32)
    near = lexicon.embeddings[tokens] @ lexicon.embeddings[documents.tokens].T
    nearest, nearest_lead = (_highest(near, each) for each in (documents.counts, documents.leads))
    counts = (documents.counts @ (near > SAME).astype(np.float32).T).T
    soft = np.log1p((documents.counts @ np.exp(SOFT * (near - 1)).T).T)
    weights = lexicon.weights[tokens]
    share = weights / max(float(weights.sum()), 1e-6)
    norm = K1 * (1 - B + B * lengths / lengths.mean())
    bm25 = weights @ (counts * (K1 + 1) / (counts + norm))
    own = lexicon.weights[query] @ lexicon.embeddings[query]
    pooled = _pooled(documents, lexicon)
    columns = (
        bm25,
        bm25 / max(float(weights.sum()), 1e-6),
        share @ nearest,
        nearest.mean(0),
        nearest.min(0),
        share @ nearest**4,
        share @ soft,
        share @ (counts > 0),
        (counts > 0).mean(0),
        np.log1p(lengths),
        share @ nearest_lead,
        pooled @ own / max(float(np.linalg.norm(own)), 1e-6),
    )
    features: Floats = np.concatenate([np.stack(columns, 1), pooled], 1).astype(np.float32)
    return features


def term_vectors(documents: Bags, lexicon: Lexicon) -> sparse.csr_matrix:
    """float64[documents, terms]: how much of each document is of which token, rows of unit
    length, or of zeros.

    Roots of counts times weights, so that a product of two rows is the documents' affinity
    (Bhattacharyya 1943): what they have in common, of which no single word makes out much.
    """
    shares = documents.counts.astype(np.float64)
    shares.data *= lexicon.weights[documents.tokens][shares.indices]
    shares.data *= np.repeat(documents.lengths > 0, np.diff(shares.indptr))
    totals = np.maximum(np.asarray(shares.sum(1)).ravel(), 1e-9)
    shares.data = np.sqrt(shares.data / np.repeat(totals, np.diff(shares.indptr)))
    return shares


def _highest(near: Floats, documents: sparse.csr_matrix) -> Floats:
    """float32[tokens of the query, documents]: how near the nearest token of each document is."""
    highest: Floats = np.maximum.reduceat(near[:, documents.indices], documents.indptr[:-1], axis=1)
    return highest


def _pooled(documents: Bags, lexicon: Lexicon) -> Floats:
    """The weighted mean of each document's embeddings, of unit length."""
    sums = documents.counts @ (
        lexicon.weights[documents.tokens, None] * lexicon.embeddings[documents.tokens]
    )
    pooled: Floats = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    return pooled
