"""What orders go by: evidence of a query's candidates, from their places, their words, or a
cheaper model.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

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

__all__ = ["Lists", "Stage", "open_stage", "pairs_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lists:
    """Queries, each with its documents in the first stage's order, or with that stage's scores
    where they are given.
    """

    queries: Sequence[str]
    documents: Sequence[Sequence[str]]
    first_scores: Sequence[NDArray[np.float32]] | None = None

    def taken(self, numbers: Sequence[int]) -> Lists:
        """Some of the queries."""
        scores = self.first_scores and [self.first_scores[i] for i in numbers]
        return Lists(
            [self.queries[i] for i in numbers], [self.documents[i] for i in numbers], scores
        )


class Stage:
    """What an order goes by: makes evidence of a query's candidates, and tokens of them where it
    needs those itself.
    """

    def __init__(
        self,
        scorer: PlannedScorer,
        kind: str,
        lexicon: Lexicon | None = None,
        model: PlannedScorer | None = None,
        ranking: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> None:
        self.scorer, self.kind, self.lexicon, self.model = scorer, kind, lexicon, model
        self.ranking = ranking or np.asarray  # of the model's logits, what ranks
        self.shares_tokens = model is not None and model.encoder.same_tokens(scorer.encoder)

    def evidence(self, lists: Lists) -> list[tuple[Evidence, Tokens | None]]:
        """What is known of each query's candidates, and the tokens of its pairs where they were
        made.
        """
        columns = [
            [
                given_features(
                    len(documents),
                    lists.first_scores[number] if lists.first_scores is not None else None,
                )
            ]
            for number, documents in enumerate(lists.documents)
        ]
        pairs, tokens = pairs_of(lists), None
        bounds = list(
            itertools.pairwise(np.cumsum([0, *(len(documents) for documents in lists.documents)]))
        )
        terms: list[sparse.csr_matrix | None] = [None] * len(columns)
        if self.lexicon or self.shares_tokens:
            tokens = self.scorer.encode(pairs)
        if self.model:
            made = (
                self.model.score_tokens(tokens)
                if tokens and self.shares_tokens
                else self.model.logits(pairs)
            )
            logits = self._sound(self.ranking(made), bounds)
            for own, (start, stop) in zip(columns, bounds, strict=True):
                own.append(logits[start:stop, None])
        if self.lexicon and tokens:
            for number, (start, stop) in enumerate(bounds):
                query, documents = self.scorer.encoder.parts(
                    pairs[start:stop], tokens.ids[start:stop]
                )
                bags = Bags.of(documents, self.lexicon)
                columns[number].append(text_features(query, bags, self.lexicon))
                terms[number] = term_vectors(bags, self.lexicon)
        size = self.lexicon.embeddings.shape[1] if self.lexicon else 0
        return [
            (
                Evidence(np.concatenate(own, 1), its, size),
                tokens and tokens.taken(np.arange(*bound)),
            )
            for own, its, bound in zip(columns, terms, bounds, strict=True)
        ]

    def _sound(
        self, logits: NDArray[np.float32], bounds: Sequence[tuple[int, int]]
    ) -> NDArray[np.float32]:
        """The cheaper model's logits, where one that is not finite counts as its query's best."""
        unsound = ~np.isfinite(logits)
        if not unsound.any():
            return logits
        log.warning(
            "%d of %d scores of the cheaper model are not finite: those documents go among the first",
            unsound.sum(),
            len(logits),
        )
        logits = np.where(unsound, np.nan, logits)
        for start, stop in bounds:
            own = logits[start:stop]
            own[np.isnan(own)] = np.nanmax(own) if np.isfinite(own).any() else 0
        return logits


def pairs_of(lists: Lists) -> list[Pair]:
    """All pairs, a query's together."""
    return [
        (query, text)
        for query, texts in zip(lists.queries, lists.documents, strict=True)
        for text in texts
    ]


def open_stage(
    scorer: PlannedScorer,
    kind: str,
    lexicon: Lexicon | None,
    cheaper: tuple[ModelFolder, str] | None,
    threads: int | None,
    device: str,
) -> Stage:
    """A stage with its cheaper model, a folder and a variant, opened."""
    if cheaper is None:
        return Stage(scorer, kind, lexicon)
    folder, variant = cheaper
    if not folder.manifest.ranks:
        raise BadInput(
            f"{folder.path}: has {folder.manifest.labels} labels, and none that ranks; see --rank-label"
        )
    model = open_scorer(folder, variant, threads=threads, device=device)
    return Stage(scorer, kind, lexicon, model, folder.manifest.ranking)
