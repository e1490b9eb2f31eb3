"""First-stage candidates by BM25, for data that comes without a run."""

from __future__ import annotations

import re
from collections.abc import Sequence

import bm25s
import numpy as np
from numpy.typing import NDArray

__all__ = ["UNSPACED", "bm25_ranking"]

# Chinese and Japanese: no blanks
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


def bm25_ranking(passages: Sequence[str], queries: Sequence[str], depth: int) -> list[list[int]]:
    """The rows of the `depth` best passages for each query, best first; fewer if there are fewer
    passages.

    Of passages that score the same the earlier comes first, whatever else is asked for. Lucene's
    BM25 with k1 = 1.5, b = 0.75 and English stop words (Lù 2024, arXiv:2407.03618); of Chinese
    and Japanese the terms are all pairs of neighbouring characters, as Lucene's CJKAnalyzer has
    them.
    """
    retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    # bm25s gives a query without a known word the empty word, which must then be in the index;
    # standing once in every passage it weighs nothing.
    retriever.index([[*words, ""] for words in _tokenize(passages)], show_progress=False)
    return [_best(retriever.get_scores(words or [""]), depth) for words in _tokenize(queries)]


def _best(scores: NDArray[np.float32], depth: int) -> list[int]:
    """The rows of the `depth` largest scores; bm25s itself takes any of those that are equal."""
    rows = np.arange(len(scores))
    if depth < len(scores):
        rows = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
    ranking: list[int] = rows[np.argsort(-scores[rows], kind="stable")][:depth].tolist()
    return ranking


def _tokenize(texts: Sequence[str]) -> list[list[str]]:
    spaced = [UNSPACED.sub(_bigrams, text) for text in texts]
    words: list[list[str]] = bm25s.tokenize(
        spaced, stopwords="en", return_ids=False, show_progress=False
    )
    return words


def _bigrams(run: re.Match[str]) -> str:
    return f" {' '.join(run[0][i : i + 2] for i in range(max(1, len(run[0]) - 1)))} "
