"""Lists to distil from: a query with some of its documents, without labels."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from xopt.runtime.data.bm25 import UNSPACED, bm25_ranking
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.errors import BadInput

__all__ = ["List", "draw_lists", "own_lists", "ranked"]

log = logging.getLogger(__name__)

List = tuple[str, list[str]]

DOCUMENTS = 8  # of a list
POOL = 50  # of BM25's best that a drawn query's documents come from
WORDS = (4, 24)  # of a drawn query
MOST_DOCUMENTS = 20_000  # that queries are drawn from
MOST_QUERIES = 10_000  # that BM25 finds documents for: hours of a CPU's training
DRAWN_QUERIES = 320  # of documents that come without any
SENTENCE = re.compile(r"(?<=[.!?\n])\s+|(?<=[。！？])\s*")


def ranked(candidates: Candidates) -> Candidates:
    """Candidates that rank something: those given, where half of the queries have two documents
    or more.

    The others are left out then. Else each query, of `MOST_QUERIES` that are drawn, gets BM25's
    best of all documents, its own among them; where no row has a query, sentences are drawn from
    the documents. Raises BadInput where there are too few of those.
    """
    given = any(row.query for row in candidates.rows)
    several = {
        query_id for query_id, rows in candidates.groups().items() if rows.stop - rows.start > 1
    }
    if given and 2 * len(several) >= (queries := len(candidates.groups())):
        if len(several) == queries:
            return candidates
        log.warning(
            "shrink: %d of %d queries have one document, and are left out",
            queries - len(several),
            queries,
        )
        return replace(
            candidates, rows=tuple(row for row in candidates.rows if row.query_id in several)
        )
    if given:
        candidates = candidates.draw(MOST_QUERIES)
    first = {row.text: row for row in reversed(candidates.rows)}
    texts = list(first)
    places = {text: place for place, text in enumerate(texts)}
    if given:
        groups = [candidates.rows[rows] for rows in candidates.groups().values()]
        asked = [
            (rows[0].query_id, rows[0].query, [places[row.text] for row in rows]) for rows in groups
        ]
    else:
        drawn = _sentences(texts, DRAWN_QUERIES, np.random.default_rng(1))
        asked = [(f"drawn {number}", query, [place]) for number, (place, query) in enumerate(drawn)]
    if len(texts) < POOL or not asked:
        raise BadInput(
            f"{candidates.name}: few queries have two documents to rank, and BM25 needs {POOL} to find others among, "
            f"not {len(texts)}, with sentences of {WORDS[0]} to {WORDS[1]} words where there are no queries"
        )
    rows = []
    for (query_id, query, own), ranking in zip(
        asked, bm25_ranking(texts, [q for _, q, _ in asked], POOL), strict=True
    ):
        others = [i for i in ranking if i not in own][: max(0, POOL - len(set(own)))]
        best = [
            *(i for i in ranking if i in own or i in others),
            *(i for i in dict.fromkeys(own) if i not in ranking),
        ]
        rows += [Row(query_id, query, first[texts[i]].doc_id, texts[i]) for i in best]
    log.info(
        "shrink: %d %s, BM25's best %d documents each",
        len(asked),
        "queries" if given else "drawn queries",
        POOL,
    )
    return Candidates(candidates.name, tuple(rows), candidates.qrels)


def own_lists(candidates: Candidates, rng: np.random.Generator) -> list[List]:
    """The queries there are, each with documents from all over its candidates, several times
    where there are many.
    """
    lists = []
    for rows in candidates.groups().values():
        texts = [row.text for row in candidates.rows[rows]]
        query, places = candidates.rows[rows.start].query, rng.permutation(len(texts)).tolist()
        lists += [(query, [texts[i] for i in part]) for part in _apart(places)]
    return [lists[i] for i in rng.permutation(len(lists))]


def _apart(places: list[int]) -> Iterator[list[int]]:
    for start in range(0, max(1, len(places) - 1), DOCUMENTS):
        yield places[start : start + DOCUMENTS]


def draw_lists(
    candidates: Candidates, count: int, rng: np.random.Generator, but: Collection[str] = ()
) -> list[List]:
    """So many queries drawn from the documents, a sentence each, with documents that BM25 finds
    for it.

    The sentence's own document is among them. Fewer where the documents have not so many
    sentences. None is one of the queries `but`.
    """
    texts = list(dict.fromkeys(row.text for row in candidates.rows))
    texts = [texts[i] for i in rng.permutation(len(texts))[:MOST_DOCUMENTS]]
    chosen = [(place, query) for place, query in _sentences(texts, count, rng) if query not in but]
    if not chosen or len(texts) <= DOCUMENTS:
        return []
    lists = []
    for (place, query), ranking in zip(
        chosen, bm25_ranking(texts, [query for _, query in chosen], POOL), strict=True
    ):
        others = [other for other in ranking if other != place]
        drawn = rng.permutation(len(others))[: DOCUMENTS - 1]
        lists.append((query, [texts[place], *(texts[others[i]] for i in drawn)]))
    return lists


def _sentences(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[tuple[int, str]]:
    """So many sentences that could be queries, each with its text's place: about as many of each
    text.
    """
    sentences = []
    for place, text in enumerate(texts):
        fitting = [each for each in SENTENCE.split(text) if WORDS[0] <= _words(each) <= WORDS[1]]
        sentences += [
            (place, each)
            for each in rng.permutation(fitting)[: 1 + count // max(1, len(texts))].tolist()
        ]
    return [sentences[i] for i in rng.permutation(len(sentences))[:count]]


def _words(text: str) -> int:
    """How many words; where they are not set apart, two characters are one."""
    return (
        len(UNSPACED.sub(" ", text).split()) + sum(len(run) for run in UNSPACED.findall(text)) // 2
    )
