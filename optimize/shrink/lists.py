"""Lists to distil from: a query with some of its documents, without labels."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import numpy as np

from xopt.runtime.data.bm25 import bm25_ranking
from xopt.runtime.data.candidates import Candidates

__all__ = ["List", "draw_lists", "own_lists"]

log = logging.getLogger(__name__)

List = tuple[str, list[str]]

DOCUMENTS = 8  # of a list
POOL = 50  # of BM25's best that a drawn query's documents come from
WORDS = (4, 24)  # of a drawn query
MOST_DOCUMENTS = 20_000  # that queries are drawn from
SENTENCE = re.compile(r"(?<=[.!?。！？\n])\s+")


def own_lists(candidates: Candidates, rng: np.random.Generator) -> list[List]:
    """The queries there are, each with documents from all over its candidates, several times where there are many."""
    lists = []
    for rows in candidates.groups().values():
        texts = [row.text for row in candidates.rows[rows]]
        query, places = candidates.rows[rows.start].query, rng.permutation(len(texts)).tolist()
        lists += [(query, [texts[i] for i in part]) for part in _apart(places)]
    return [lists[i] for i in rng.permutation(len(lists))]


def _apart(places: list[int]) -> Iterator[list[int]]:
    for start in range(0, max(1, len(places) - 1), DOCUMENTS):
        yield places[start : start + DOCUMENTS]


def draw_lists(candidates: Candidates, count: int, rng: np.random.Generator) -> list[List]:
    """So many queries drawn from the documents, a sentence each, with documents that BM25 finds for it.

    The sentence's own document is among them. Fewer where the documents have not so many sentences.
    """
    texts = list(dict.fromkeys(row.text for row in candidates.rows))
    texts = [texts[i] for i in rng.permutation(len(texts))[:MOST_DOCUMENTS]]
    sentences = []
    for place, text in enumerate(texts):
        fitting = [each for each in SENTENCE.split(text) if WORDS[0] <= len(each.split()) <= WORDS[1]]
        sentences += [(place, each) for each in rng.permutation(fitting)[: 1 + count // max(1, len(texts))].tolist()]
    chosen = [sentences[i] for i in rng.permutation(len(sentences))[:count]]
    if not chosen or len(texts) <= DOCUMENTS:
        return []
    lists = []
    for (place, query), ranking in zip(chosen, bm25_ranking(texts, [query for _, query in chosen], POOL), strict=True):
        others = [other for other in ranking if other != place]
        drawn = rng.permutation(len(others))[: DOCUMENTS - 1]
        lists.append((query, [texts[place], *(texts[others[i]] for i in drawn)]))
    return lists
