"""Evidence that orders predict from: ranks, texts and a cheaper model's logits."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.features import (
    Bags,
    Evidence,
    Lexicon,
    given_features,
    term_vectors,
    text_features,
)
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.encode import Pair, Tokens
from xopt.runtime.scoring.scorer import PlannedScorer, open_scorer

__all__ = ["EvidenceSource", "Lists", "check_ranks", "open_evidence_source"]

Logits = NDArray[np.float32]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lists:
    """Queries, each with its documents as a first stage ranked them."""

    queries: Sequence[str]
    documents: Sequence[Sequence[str]]
    first_scores: Sequence[Logits] | None = None

    @property
    def pairs(self) -> list[Pair]:
        lists = zip(self.queries, self.documents, strict=True)
        return [(query, text) for query, texts in lists for text in texts]

    def select(self, numbers: Sequence[int]) -> Lists:
        queries = [self.queries[i] for i in numbers]
        documents = [self.documents[i] for i in numbers]
        if self.first_scores is None:
            return Lists(queries, documents)
        return Lists(queries, documents, [self.first_scores[i] for i in numbers])


class EvidenceSource:
    """Collects the evidence of queries for an order of a kind.

    lexicon: for text features, from the tokens of `scorer`.
    model, ranking: the cheaper model, and what ranks of its logits.
    """

    def __init__(
        self,
        scorer: PlannedScorer,
        kind: str,
        lexicon: Lexicon | None = None,
        model: PlannedScorer | None = None,
        ranking: Callable[[Logits], Logits] = np.asarray,
    ) -> None:
        self.scorer = scorer
        self.kind = kind
        self.lexicon = lexicon
        self.model = model
        self.ranking = ranking
        self.shares_tokens = model is not None and model.encoder.same_tokens(scorer.encoder)

    def collect(self, lists: Lists) -> list[tuple[Evidence, Tokens | None]]:
        """Return each query's evidence, and its tokens if they were made."""
        pairs = lists.pairs
        bounds = itertools.accumulate(map(len, lists.documents), initial=0)
        queries = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        tokens = None
        if self.lexicon or self.shares_tokens:
            tokens = self.scorer.encode(pairs)
        logits = self._cheaper_logits(pairs, tokens, queries)
        embedding = self.lexicon.embeddings.shape[1] if self.lexicon else 0
        collected = []
        for number, rows in enumerate(queries):
            first_scores = None
            if lists.first_scores is not None:
                first_scores = lists.first_scores[number]
            columns = [given_features(rows.stop - rows.start, first_scores)]
            if logits is not None:
                columns.append(logits[rows, None])
            terms = None
            if self.lexicon and tokens:
                query, texts = self.scorer.encoder.parts(pairs[rows], tokens.ids[rows])
                bags = Bags.of(texts, self.lexicon)
                columns.append(text_features(query, bags, self.lexicon))
                terms = term_vectors(bags, self.lexicon)
            evidence = Evidence(np.concatenate(columns, 1), terms, embedding)
            collected.append((evidence, _part(tokens, rows) if tokens else None))
        return collected

    def _cheaper_logits(
        self, pairs: list[Pair], tokens: Tokens | None, queries: Sequence[slice]
    ) -> Logits | None:
        """Return the cheaper model's logits, a query's best for those not finite."""
        if self.model is None:
            return None
        if tokens and self.shares_tokens:
            logits = self.ranking(self.model.score_tokens(tokens))
        else:
            logits = self.ranking(self.model.logits(pairs))
        finite = np.isfinite(logits)
        if finite.all():
            return logits
        log.warning(
            "%d of %d scores of the cheaper model are not finite; these go first",
            (~finite).sum(),
            len(logits),
        )
        logits = logits.copy()
        for rows in queries:
            best = logits[rows].max(where=finite[rows], initial=-np.inf)
            logits[rows][~finite[rows]] = best if np.isfinite(best) else 0
        return logits


def _part(tokens: Tokens, rows: slice) -> Tokens:
    """Return the tokens of some pairs, which of them were cut included."""
    part = tokens.taken(np.arange(rows.start, rows.stop))
    is_inside = (tokens.cut >= rows.start) & (tokens.cut < rows.stop)
    return replace(part, cut=tokens.cut[is_inside] - rows.start)


def check_ranks(folder: ModelFolder) -> None:
    """Raise BadInput if a model has several labels and none to rank by."""
    if not folder.manifest.ranks:
        raise BadInput(
            f"{folder.path}: has {folder.manifest.labels} labels, and none to rank by; "
            "export it again with `rank_label=`"
        )


def open_evidence_source(
    scorer: PlannedScorer,
    kind: str,
    lexicon: Lexicon | None,
    cheaper: tuple[ModelFolder, str] | None,
    threads: int | None,
    device: str,
) -> EvidenceSource:
    """Open an evidence source, with a cheaper model's folder and variant.

    Raises BadInput if that model does not rank.
    """
    if cheaper is None:
        return EvidenceSource(scorer, kind, lexicon)
    folder, variant = cheaper
    check_ranks(folder)
    model = open_scorer(folder, variant, threads=threads, device=device)
    return EvidenceSource(scorer, kind, lexicon, model, folder.manifest.ranking)
