"""Cascades, their certificates, and how they rank."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from xopt.runtime.cascade.evidence import EvidenceSource, Lists, open_evidence_source
from xopt.runtime.cascade.features import Lexicon
from xopt.runtime.cascade.fingerprint import LEXICON, model_fingerprint
from xopt.runtime.cascade.order import Order
from xopt.runtime.cascade.rule import PartialRanking, Rule
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.formats import OtherVersion, read
from xopt.runtime.machine import cores
from xopt.runtime.progress import Step, progress
from xopt.runtime.scoring.encode import Pair, Tokens, check_pairs
from xopt.runtime.scoring.scorer import PlannedScorer, checked, open_scorer
from xopt.runtime.scoring.stages import Stages

__all__ = [
    "Cascade",
    "CascadeScorer",
    "Certificate",
    "Lists",
    "Ranked",
    "find_cheaper_model",
    "open_cascade",
    "open_lexicon",
]

Rows = NDArray[np.intp]

log = logging.getLogger(__name__)

DEPTH_WARNING = 2  # times the certificate's candidates a query
PAIRS_AT_ONCE = 16384  # candidates of the queries that run together


@dataclass(frozen=True)
class Certificate:
    """What a cascade may lose on queries like those that certified it.

    Their mean `ranking_loss`, by `measure` and `top`, is at most `max_loss`: with `confidence`
    or, if that is None, in expectation.

    loss, bound: of the queries that certified, and what it shows.
    share: of their pairs, those scored.
    depth: candidates a query.
    first_stage, column: the data's name, and its column of scores.
    data: the sha256 of queries and documents.
    seen: hashes of the queries that chose or certified.
    """

    measure: str
    top: int
    max_loss: float
    confidence: float | None
    loss: float
    bound: float
    share: float
    queries: int
    depth: float
    first_stage: str
    column: str | None
    data: str
    seen: Sequence[str]


@dataclass(frozen=True)
class Cascade:
    """An order, a stop rule, the variant that scores, and their certificate."""

    order: Order
    rule: Rule
    variant: str
    certificate: Certificate

    @staticmethod
    def of(folder: ModelFolder) -> Cascade:
        """Read a folder's cascade. Raises BadInput if it has none."""
        kept = folder.manifest.cascade
        if not kept:
            raise BadInput(
                f"{folder.path}: has no cascade; "
                f"make one with `xopt cascade {folder.path} --data DATA`"
            )
        try:
            order = read(Order, kept["order"])
            rule = read(Rule, kept["rule"])
            certificate = read(Certificate, kept["certificate"])
            made = {"order": order, "rule": rule, "certificate": certificate}
            return read(Cascade, {**kept, **made})
        except OtherVersion as error:
            raise BadInput(
                f"{folder.path}: its cascade was made by {error}; use that version, or make it "
                "again with `xopt cascade`"
            ) from error
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{folder.path}: its cascade is damaged ({error}); make it again with "
                "`xopt cascade`"
            ) from error

    def beyond(self, top_k: int | None) -> str:
        """Return a warning if more is asked for than was certified, or ""."""
        top = self.certificate.top
        if top_k is None or top_k <= top:
            return ""
        more = f"the best {top_k} are asked for; its certificate is of {top}"
        return f"{more} (`xopt cascade --top {top_k}`)"

    def too_deep(self, candidates: int) -> str:
        """Return a warning if a query has many more candidates than was certified, or ""."""
        depth = self.certificate.depth
        if candidates <= DEPTH_WARNING * depth:
            return ""
        return f"{candidates} candidates of a query; its certificate is of {depth:.0f}"


@dataclass(frozen=True)
class Ranked:
    """The ranking of a query's candidates.

    ranking: their places, best first.
    scores: float32[documents], their logits, NaN if not scored.
    not_finite: how many have a logit that is not finite.
    """

    ranking: Rows
    scores: NDArray[np.float32]
    not_finite: int = 0


@dataclass(frozen=True, eq=False)
class _ActiveQuery:
    """A query whose candidates are being scored."""

    number: int
    tokens: Tokens | None
    partial: PartialRanking


class CascadeScorer:
    """Ranks each query's candidates, scoring as few as its cascade asks for."""

    def __init__(
        self,
        folder: ModelFolder,
        scorer: PlannedScorer,
        evidence_source: EvidenceSource,
        cascade: Cascade,
        threads: int,
    ) -> None:
        self.folder = folder
        self.scorer = scorer
        self.evidence_source = evidence_source
        self.cascade = cascade
        self.threads = threads
        self._warned: set[str] = set()

    @property
    def stages(self) -> Stages:
        """Where the time of all calls so far went."""
        model = self.evidence_source.model
        if model is None:
            return self.scorer.stages
        # A pair that both models cut counts once.
        return self.scorer.stages.plus(replace(model.stages, truncated=0))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        first_scores: Sequence[float] | None = None,
    ) -> list[dict[str, Any]]:
        """Rank a query's documents, given in the first stage's order.

        Returns the best `top_k`, or all: `corpus_id`, a document's place, and its logit, `score`.
        Documents that were not scored come last, with the score None.
        `first_scores` are the first stage's, if the cascade was made with them.
        """
        self._warn("top", self.cascade.beyond(top_k))
        scores = None if first_scores is None else [np.asarray(first_scores, np.float32)]
        ranked = self.rank_all(Lists([query], [list(documents)], scores))[0]
        values = [float(score) if np.isfinite(score) else None for score in ranked.scores]
        return [{"corpus_id": int(i), "score": values[i]} for i in ranked.ranking[:top_k]]

    def rank_all(self, lists: Lists, finite: bool = True) -> list[Ranked]:
        """Rank the candidates of many queries, whose documents are scored together.

        Raises BadInput if first-stage scores do not fit.
        Raises NotFinite if a logit is not; without `finite` its candidate comes last.
        """
        self.check(lists)
        deepest = max(map(len, lists.documents), default=0)
        self._warn("depth", self.cascade.too_deep(deepest))
        # Queries that stop early end first, so that no rate holds for the rest.
        with (
            progress("the cascade ranks", len(lists.queries), "queries") as step,
            threadpool_limits(self.threads, user_api="blas"),
        ):
            return self._rank_all(lists, finite, step)

    def _rank_all(self, lists: Lists, finite: bool, step: Step) -> list[Ranked]:
        unranked = Ranked(np.empty(0, np.intp), np.empty(0, np.float32))
        results = [unranked] * len(lists.queries)
        waiting = deque(i for i, documents in enumerate(lists.documents) if documents)
        active: list[_ActiveQuery] = []
        while waiting or active:
            active += self._start(lists, _take(waiting, lists, active))
            blocks = []
            for query in active:
                candidates = query.partial.next_candidates()
                if len(candidates):
                    blocks.append((query, candidates))
                else:
                    results[query.number] = _ranked(query.partial)
                    step.advance()
            active = [query for query, _ in blocks]
            if blocks:
                self._score(lists, blocks, finite)
        return results

    def _start(self, lists: Lists, numbers: list[int]) -> list[_ActiveQuery]:
        if not numbers:
            return []
        started = []
        begun = self.begin(lists.select(numbers))
        for number, (partial, tokens) in zip(numbers, begun, strict=True):
            started.append(_ActiveQuery(number, tokens, partial))
        return started

    def begin(self, lists: Lists) -> list[tuple[PartialRanking, Tokens | None]]:
        """Return each query's candidates with no score yet, and their tokens if they were made.

        It is for who scores what a `PartialRanking` asks for; `rank_all` does both.
        """
        cascade = self.cascade
        top = cascade.certificate.top
        measure = cascade.certificate.measure
        begun = []
        for evidence, tokens in self.evidence_source.collect(lists):
            partial = PartialRanking(evidence, cascade.order, cascade.rule, top, measure)
            begun.append((partial, tokens))
        return begun

    def _score(self, lists: Lists, blocks: list[tuple[_ActiveQuery, Rows]], finite: bool) -> None:
        pairs: list[Pair] = []
        for query, candidates in blocks:
            text = lists.queries[query.number]
            documents = lists.documents[query.number]
            pairs += [(text, documents[row]) for row in candidates]
        tokens = [query.tokens.taken(rows) for query, rows in blocks if query.tokens]
        if tokens:
            logits = self.scorer.score_tokens(Tokens.joined(tokens))
        else:
            logits = self.scorer.logits(pairs)
        if finite:
            checked(pairs, logits)
        scores = self.folder.manifest.ranking(logits)
        start = 0
        for query, candidates in blocks:
            stop = start + len(candidates)
            query.partial.add_scores(candidates, scores[start:stop])
            start = stop

    def _warn(self, kind: str, warning: str) -> None:
        """Log a warning, if any, once of each kind."""
        if warning and kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s: %s", self.folder.path, warning)

    def check(self, lists: Lists) -> None:
        """Raise BadInput if the lists do not fit the cascade."""
        check_pairs(lists.pairs)
        with_score = self.cascade.order.with_score
        if with_score != (lists.first_scores is not None):
            needs = "needs" if with_score else "was made without"
            raise BadInput(f"{self.folder.path}: its cascade {needs} the first stage's scores")
        if lists.first_scores is None:
            return
        for number, scores in enumerate(lists.first_scores):
            fits = len(scores) == len(lists.documents[number])
            if not fits or not np.isfinite(scores).all():
                query = lists.queries[number]
                raise BadInput(f"query {query!r:.60}: give one finite first-stage score a document")


def _ranked(partial: PartialRanking) -> Ranked:
    return Ranked(partial.ranking(), partial.scores, len(partial.not_finite))


def _take(waiting: deque[int], lists: Lists, active: Sequence[_ActiveQuery]) -> list[int]:
    """Take the queries to start from `waiting`, if half of `PAIRS_AT_ONCE` is free."""
    numbers: list[int] = []
    pairs = sum(len(query.partial.scores) for query in active)
    if pairs > PAIRS_AT_ONCE // 2:
        return numbers
    while waiting:
        pairs += len(lists.documents[waiting[0]])
        if pairs > PAIRS_AT_ONCE and (active or numbers):
            break
        numbers.append(waiting.popleft())
    return numbers


def open_cascade(
    folder: str | os.PathLike[str] | ModelFolder,
    *,
    threads: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> CascadeScorer:
    """Open the cascade that `xopt cascade` wrote into a model folder.

    The arguments are those of `open_scorer`.

    Returns a scorer. Its `rank(query, documents, top_k)` takes a query's documents in the first
    stage's order. It returns the best as dicts with `corpus_id`, a document's place, and `score`,
    its logit. Documents that were not scored come last, with the score None.

    Raises BadInput if there is none, or a file of it is missing or damaged.
    """
    if not isinstance(folder, ModelFolder):
        folder = ModelFolder.open(os.fspath(folder), trust_remote_code)
    cascade = Cascade.of(folder)
    order = cascade.order
    scorer = open_scorer(folder, cascade.variant, threads=threads, device=device)
    lexicon = open_lexicon(folder, order)
    cheaper = find_cheaper_model(folder, order) if order.model else None
    source = open_evidence_source(scorer, order.kind, lexicon, cheaper, threads, device)
    return CascadeScorer(folder, scorer, source, cascade, threads or cores())


def open_lexicon(folder: ModelFolder, order: Order) -> Lexicon | None:
    """Open a folder's lexicon, if its order reads texts.

    Raises BadInput if it is missing or damaged.
    """
    if order.kind == "given":
        return None
    make_again = f"make it again with `xopt cascade {folder.path} --data DATA`"
    return Lexicon.load(folder.checked(LEXICON, make_again))


def find_cheaper_model(folder: ModelFolder, order: Order) -> tuple[ModelFolder, str]:
    """Return an order's cheaper model and its variant.

    It may have moved beside `folder`. Raises BadInput if it is missing or has changed.
    """
    path = Path(str(order.model))
    again = f"xopt cascade {folder.path} --data DATA --first"
    place = path if path.is_dir() else folder.path.resolve().parent / path.name
    if not place.is_dir():
        raise BadInput(
            f"{path}: no such folder, nor one of that name beside {folder.path}, "
            f"whose cascade needs it; make that again with `{again} SMALL`"
        )
    cheaper = ModelFolder.open(place, folder.trusted)
    variant = cheaper.variant(str(order.variant)).name
    certified = str(order.sha256)
    if model_fingerprint(cheaper, variant, cascade=False, like=certified) != certified:
        raise BadInput(
            f"{path}: {variant} is not what the cascade of {folder.path} was certified "
            f"with; make that again with `{again} {path}`"
        )
    return cheaper, variant
