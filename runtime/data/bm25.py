"""First-stage candidates by BM25, for data that comes without a run."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence

import bm25s
import numpy as np
import regex
from bm25s.stopwords import STOPWORDS_EN
from numpy.typing import NDArray

from xopt.runtime.progress import progress

__all__ = ["UNSPACED", "bm25_ranking", "words_of"]

log = logging.getLogger(__name__)

# A word with the marks that belong to its letters (vowel signs of Indic scripts, accents), but not
# the `s` and `t` that English sets behind an apostrophe.
WORD = regex.compile(r"(?<!\w['’](?=\w\b))[\w\p{M}]+")
# Scripts without blanks between words.
UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{M}\u30fc]*"
)
LETTER = regex.compile(r"\X")  # with its marks
# Points and vowel signs that Hebrew and Arabic write or leave out, Arabic's lengthening, soft
# hyphens, and signs without a width that only tell how letters join.
OPTIONAL = regex.compile(
    r"[\u00ad\u200b-\u200d\u2060\ufeff\u0591-\u05bd\u05bf-\u05c7]"
    r"|[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed]"
)


def bm25_ranking(
    passages: Sequence[str], queries: Sequence[str], depth: int, name: str = "BM25"
) -> list[list[int]]:
    """Rank passages for each query: the rows of the `depth` best, best first.

    Of passages that score the same the earlier comes first, whatever else is asked for. A warning,
    under `name`, counts the queries of which no word stands in a passage. Lucene's BM25 with
    k1 = 1.5, b = 0.75 and English stop words (Lù 2024, arXiv:2407.03618).
    """
    retriever = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    # bm25s gives a query without a known word the empty word, which must then be in the index;
    # standing once in every passage it weighs nothing.
    with progress(f"BM25 reads {len(passages):,} passages"):
        retriever.index([[*words, ""] for words in map(words_of, passages)], show_progress=False)
    ranked = []
    strangers = 0
    with progress("BM25 ranks", len(queries), "queries", work=len(queries)) as step:
        for words in map(words_of, queries):
            strangers += not any(word in retriever.vocab_dict for word in words)
            ranked.append(_best(retriever.get_scores(words or [""]), depth))
            step.advance()
    if strangers:
        log.warning(
            "%s: %d of %d queries have no term in the corpus: their candidates mean nothing",
            name,
            strangers,
            len(queries),
        )
    return ranked


def words_of(text: str) -> list[str]:
    """Take a text apart into lower-case words, without English stop words.

    Some scripts have no blanks between words: Chinese, Japanese, Thai, Lao, Khmer and Burmese.
    There the words are all pairs of neighbouring letters, as in Lucene's CJKAnalyzer. Compatible
    forms of a letter are one (Unicode's NFKC), however a file writes them.
    """
    lower = unicodedata.normalize("NFKC", text).lower().replace("i\u0307", "i")  # of Turkish I
    plain = OPTIONAL.sub("", lower)
    words = WORD.findall(UNSPACED.sub(_pairs_of_letters, plain))
    return [word for word in words if word not in STOPWORDS_EN]


def _pairs_of_letters(run: regex.Match[str]) -> str:
    letters = LETTER.findall(run[0])
    pairs = ["".join(letters[i : i + 2]) for i in range(max(1, len(letters) - 1))]
    return f" {' '.join(pairs)} "


def _best(scores: NDArray[np.float32], depth: int) -> list[int]:
    """The rows of the `depth` largest scores; bm25s itself takes any of those that are equal."""
    rows = np.arange(len(scores))
    if depth < len(scores):
        rows = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
    ranking: list[int] = rows[np.argsort(-scores[rows], kind="stable")][:depth].tolist()
    return ranking
