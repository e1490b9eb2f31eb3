"""First-stage candidates by BM25, for data that comes without a run."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s

__all__ = ["bm25_ranking"]


def bm25_ranking(passages: Sequence[str], queries: Sequence[str], depth: int) -> list[list[int]]:
    """The rows of the `depth` best passages for each query, best first; fewer if there are fewer passages.

    Lucene's BM25 with k1 = 1.5, b = 0.75 and English stop words (Lù 2024, arXiv:2407.03618).
    """
    retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    # bm25s gives a query without a known word the empty word, which must then be in the index;
    # standing once in every passage it weighs nothing.
    retriever.index([[*words, ""] for words in _tokenize(passages)], show_progress=False)
    queried = [words or [""] for words in _tokenize(queries)]
    rows, _ = retriever.retrieve(queried, k=min(depth, len(passages)), show_progress=False)
    return [[int(row) for row in ranking] for ranking in rows]


def _tokenize(texts: Sequence[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return words
