"""The lexicon of a learned order: the model's own word embeddings, reduced, and how rare each
token is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.features import Lexicon
from xopt.runtime.folder import ModelFolder

__all__ = ["make_lexicon", "token_weights"]

DIMENSIONS = 64  # as good an order as all 384 of the demo model's, at a fifth of the time
SAMPLE = 8192  # tokens that the principal components are taken of


def make_lexicon(folder: ModelFolder, documents: Sequence[NDArray[np.int64]]) -> Lexicon:
    """The lexicon of a model, with inverse document frequencies (BM25's) in `documents`, ids of
    tokens.
    """
    from xopt.runtime.scoring.backends.network import load_own

    words = load_own(folder).model.get_input_embeddings().weight
    embeddings = words.detach().float().numpy()
    embeddings = embeddings - embeddings.mean(0)
    if embeddings.shape[1] > DIMENSIONS:
        sample = np.random.default_rng(0).permutation(len(embeddings))[:SAMPLE]
        _, _, components = np.linalg.svd(embeddings[sample], full_matrices=False)
        embeddings = embeddings @ components[:DIMENSIONS].T
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-6)
    # As it is kept, in half precision, so that what is certified is what runs.
    return Lexicon(
        embeddings.astype(np.float16).astype(np.float32), token_weights(documents, len(embeddings))
    )


def token_weights(documents: Sequence[NDArray[np.int64]], tokens: int) -> NDArray[np.float32]:
    """float32[tokens], BM25's inverse document frequencies in these documents."""
    found = np.zeros(tokens)
    for ids in documents:
        found[np.unique(ids)] += 1
    weights: NDArray[np.float32] = np.log1p((len(documents) - found + 0.5) / (found + 0.5)).astype(
        np.float32
    )
    return weights
