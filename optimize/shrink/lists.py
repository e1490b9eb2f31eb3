"""Lists to distil from: a query with some of its documents, without labels."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
import regex

from xopt.runtime.data.bm25 import UNSPACED, bm25_ranking
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.errors import BadInput

__all__ = ["TrainingList", "draw_lists", "in_turn", "own_lists", "rankable"]

log = logging.getLogger(__name__)

TrainingList = tuple[str, list[str]]  # a query and documents

DOCUMENTS = 8  # of a list
POOL = 50  # of BM25's best documents, that a drawn query's list is chosen from
FEWEST_WORDS = 4  # of a sentence that is a query
MOST_WORDS = 24
MOST_DOCUMENTS = 20_000  # that sentences are drawn from
MOST_QUERIES = 10_000  # that BM25 ranks documents for: enough for hours of training
DRAWN_QUERIES = 320  # for documents that come without any
# Thai and its like end a sentence with a blank, and have none between words.
SENTENCE_END = regex.compile(
    r"(?<=[.!?\n।॥؟۔])\s+|(?<=[。！？។။])\s*|\s+(?=[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
)


def rankable(candidates: Candidates) -> Candidates:
    """Make candidates whose queries have several documents each.

    Where at least half of the queries have, the others are left out. Else BM25 finds
    documents, for at most `MOST_QUERIES`. Where there are no queries, sentences of the
    documents take their place. Raises BadInput where there are too few documents.
    """
    if not any(row.query for row in candidates.rows):
        return _with_bm25(candidates, _drawn_queries(candidates))
    groups = candidates.groups()
    several = {query_id for query_id, rows in groups.items() if rows.stop - rows.start > 1}
    left_out = len(groups) - len(several)
    if not left_out:
        return candidates
    if left_out > len(several):
        candidates = candidates.draw(MOST_QUERIES)
        return _with_bm25(candidates, candidates.rows)
    log.warning(
        "shrink: %d of %d queries have one document, and are left out",
        left_out,
        len(groups),
    )
    rows = tuple(row for row in candidates.rows if row.query_id in several)
    return replace(candidates, rows=rows)


def _drawn_queries(candidates: Candidates) -> list[Row]:
    """Sentences as queries, each with its document."""
    texts = list(_documents(candidates))
    sentences = _sentences(texts, DRAWN_QUERIES, np.random.default_rng(1))
    return [
        Row(f"drawn {number}", sentence, "", text)
        for number, (sentence, text) in enumerate(sentences)
    ]


def _documents(candidates: Candidates) -> dict[str, str]:
    """Documents' first ids, by their texts."""
    return {row.text: row.doc_id for row in reversed(candidates.rows)}


def _with_bm25(candidates: Candidates, queries: Sequence[Row]) -> Candidates:
    """Give each query `POOL` documents: its own, and BM25's best of all."""
    documents = _documents(candidates)
    if len(documents) < POOL or not queries:
        raise BadInput(
            f"{candidates.name}: most queries have one document, and BM25 finds others only among "
            f"{POOL} or more, not {len(documents)}; give more documents. Without queries their "
            f"sentences need {FEWEST_WORDS} to {MOST_WORDS} words"
        )
    text_of = {row.query_id: row.query for row in queries}
    own: dict[str, list[str]] = {query_id: [] for query_id in text_of}
    for row in queries:
        if row.text not in own[row.query_id]:
            own[row.query_id].append(row.text)
    texts = list(documents)
    rankings = bm25_ranking(texts, list(text_of.values()), POOL)
    rows: list[Row] = []
    for (query_id, query), ranking in zip(text_of.items(), rankings, strict=True):
        found = [texts[i] for i in ranking]
        others = [text for text in found if text not in own[query_id]]
        surplus = others[max(0, POOL - len(own[query_id])) :]
        best = [text for text in found if text not in surplus]
        best += [text for text in own[query_id] if text not in found]
        rows += [Row(query_id, query, documents[text], text) for text in best]
    log.info("shrink: %d queries, BM25's best %d documents each", len(text_of), POOL)
    return Candidates(candidates.name, tuple(rows), candidates.qrels)


def own_lists(candidates: Candidates, rng: np.random.Generator) -> list[TrainingList]:
    """Split each query's documents into lists at random."""
    lists = []
    for rows in candidates.groups().values():
        query = candidates.rows[rows.start].query
        texts = [row.text for row in candidates.rows[rows]]
        mixed = [texts[i] for i in rng.permutation(len(texts))]
        # A document that is left over alone cannot be compared with another one.
        starts = range(0, len(mixed) - 1, DOCUMENTS)
        lists += [(query, mixed[start : start + DOCUMENTS]) for start in starts]
    return [lists[i] for i in rng.permutation(len(lists))]


def draw_lists(
    candidates: Candidates,
    count: int,
    rng: np.random.Generator,
    excluded: Collection[str] = (),
) -> list[TrainingList]:
    """Draw at most `count` sentences as queries, with some of BM25's best documents.

    The sentence's own document comes first. No query is one of the `excluded`.
    """
    texts = list(dict.fromkeys(row.text for row in candidates.rows))
    texts = [texts[i] for i in rng.permutation(len(texts))[:MOST_DOCUMENTS]]
    drawn = _sentences(texts, count, rng)
    sentences = [each for each in drawn if each[0] not in excluded]
    if not sentences or len(texts) <= DOCUMENTS:
        return []
    rankings = bm25_ranking(texts, [sentence for sentence, _ in sentences], POOL)
    lists = []
    for (sentence, text), ranking in zip(sentences, rankings, strict=True):
        others = [texts[i] for i in ranking if texts[i] != text]
        chosen = rng.permutation(len(others))[: DOCUMENTS - 1]
        lists.append((sentence, [text, *(others[i] for i in chosen)]))
    return lists


def in_turn(
    own: list[TrainingList],
    drawn: list[TrainingList],
    rng: np.random.Generator,
) -> Iterator[TrainingList]:
    """Alternate between the two kinds without end."""
    kinds = [_repeated(kind, rng) for kind in (own, drawn) if kind]
    for kind in itertools.cycle(kinds):
        yield next(kind)


def _repeated(lists: list[TrainingList], rng: np.random.Generator) -> Iterator[TrainingList]:
    while True:
        for i in rng.permutation(len(lists)):
            yield lists[i]


def _sentences(
    texts: Sequence[str],
    count: int,
    rng: np.random.Generator,
) -> list[tuple[str, str]]:
    """Draw sentences that could be queries, each with its text."""
    most = 1 + count // max(1, len(texts))
    drawn = []
    for text in texts:
        fitting = [each for each in SENTENCE_END.split(text) if _could_be_query(each)]
        chosen = rng.permutation(fitting)[:most].tolist()
        drawn += [(sentence, text) for sentence in chosen]
    return [drawn[i] for i in rng.permutation(len(drawn))[:count]]


def _could_be_query(sentence: str) -> bool:
    """Whether it is neither too short nor too long."""
    spaced = UNSPACED.sub(" ", sentence).split()
    unspaced = "".join(UNSPACED.findall(sentence))
    words = len(spaced) + len(unspaced) // 2  # where none are set apart, two characters each
    return FEWEST_WORDS <= words <= MOST_WORDS
