"""The lexicon of a learned order: word embeddings, and how rare each token is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.features import Lexicon
from xopt.runtime.folder import ModelFolder

__all__ = ["make_lexicon", "token_weights"]

Ids = NDArray[np.int64]

DIMENSIONS = 64  # order as well as the demo model's 384, in a fifth of the time
SAMPLE = 8192  # tokens that the principal components are fitted on


def make_lexicon(folder: ModelFolder, documents: Sequence[Ids]) -> Lexicon:
    """Make the lexicon of a model, weighted by these documents' token ids."""
    from xopt.runtime.scoring.backends.network import load_own

    words = load_own(folder).model.get_input_embeddings().weight
    embeddings = words.detach().float().numpy()
    embeddings = embeddings - embeddings.mean(0)
    if embeddings.shape[1] > DIMENSIONS:
        sample = np.random.default_rng(0).permutation(len(embeddings))[:SAMPLE]
        _, _, components = np.linalg.svd(embeddings[sample], full_matrices=False)
        embeddings = embeddings @ components[:DIMENSIONS].T
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-6)
    # `save` writes half precision, and what is certified has to be what runs.
    rounded = embeddings.astype(np.float16).astype(np.float32)
    return Lexicon(rounded, token_weights(documents, len(embeddings)))


def token_weights(documents: Sequence[Ids], tokens: int) -> NDArray[np.float32]:
    """Return float32[tokens], BM25's inverse document frequencies in these documents."""
    documents_with = np.zeros(tokens)
    for ids in documents:
        documents_with[np.unique(ids)] += 1
    documents_without = len(documents) - documents_with
    weights = np.log1p((documents_without + 0.5) / (documents_with + 0.5))
    return weights.astype(np.float32)
