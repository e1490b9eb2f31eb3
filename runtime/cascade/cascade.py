"""Cascades: an order, a stop rule and a variant, with the certificate of what they may lose; and how they rank."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.features import Lexicon
from xopt.runtime.cascade.order import Order
from xopt.runtime.cascade.rule import Course, Rule
from xopt.runtime.cascade.stage import Lists, Stage, open_stage, pairs_of
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.encode import Pair, Tokens, check_pairs
from xopt.runtime.scoring.scorer import PlannedScorer, checked, open_scorer
from xopt.runtime.scoring.stages import Stages

__all__ = ["LEXICON", "Cascade", "CascadeScorer", "Certificate", "Lists", "Ranked", "open_cascade"]

LEXICON = "cascade.safetensors"
log = logging.getLogger(__name__)

DEEPER = 2  # times the certificate's candidates a query, from which on that is said
PAIRS_AT_ONCE = 4096  # queries are on their way together until they have so many candidates


@dataclass(frozen=True)
class Certificate:
    """What a cascade may lose on queries like these.

    measure: "dcg", the share of DCG@top that is lost, gains by the reference's scores; "top", the share of queries of
    whose best `top` by the reference one is not scored. With `confidence`, or in expectation where that is None, the
    mean over queries is at most `max_loss`. On the queries that it was found on, none of which chose anything, it was
    `loss`, and `bound` is the least that they show; `share` of a query's pairs were scored there, in the mean. depth:
    candidates a query. first_stage: where they came from; column: where their scores stood. data: the sha256 of the
    queries and their documents. seen: hashes of all queries that chose or certified.
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
    seen: tuple[str, ...]


@dataclass(frozen=True)
class Cascade:
    """An order, a stop rule and the variant that scores, with their certificate; the manifest keeps it."""

    order: Order
    rule: Rule
    variant: str
    certificate: Certificate

    @staticmethod
    def of(folder: ModelFolder) -> Cascade:
        """The cascade of a model folder. Raises BadInput where it has none."""
        kept = folder.manifest.cascade
        if not kept:
            raise BadInput(f"{folder.path}: has no cascade; make one with `xopt cascade {folder.path} --data DATA`")
        try:
            order, certificate = dict(kept["order"]), dict(kept["certificate"])
            for name in ("weights", "scale", "variances", "quantiles"):
                order[name] = tuple(order[name])
            order["widths"] = tuple(tuple(each) for each in order["widths"])
            certificate["seen"] = tuple(certificate["seen"])
            return Cascade(Order(**order), Rule(**kept["rule"]), kept["variant"], Certificate(**certificate))
        except (KeyError, TypeError) as error:
            raise BadInput(
                f"{folder.path}: its cascade is of another version of xopt ({error}); make it again with `xopt cascade`"
            ) from error

    def values(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Ranked:
    """A query's candidates: their places, best first; their logits in the order given, NaN of those not scored.

    not_finite: how many were scored, and have no finite score.
    """

    ranking: NDArray[np.intp]
    scores: NDArray[np.float32]
    not_finite: int = 0

    @property
    def scored(self) -> int:
        """How many were scored."""
        return int(np.isfinite(self.scores).sum())


class CascadeScorer:
    """Ranks each query's candidates, scoring as few of them as its cascade asks for.

    Blocks of many queries run together, so that small blocks do not waste the cores.
    """

    def __init__(self, folder: ModelFolder, scorer: PlannedScorer, stage: Stage, cascade: Cascade) -> None:
        self.folder, self.scorer, self.stage, self.cascade = folder, scorer, stage, cascade
        self._warned = False

    @property
    def stages(self) -> Stages:
        """Where the time of all calls so far went."""
        own = self.scorer.stages
        return own.plus(self.stage.model.stages) if self.stage.model else own

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        first_scores: Sequence[float] | None = None,
    ) -> list[dict[str, Any]]:
        """Documents, in the first stage's order, best first: `corpus_id` and `score`, the logit.

        A document that was not scored has the score None, and comes after those that were. `first_scores` are the first
        stage's, higher is better, where the cascade was made with them.
        """
        scores = None if first_scores is None else [np.asarray(first_scores, np.float32)]
        ranked = self.rank_all(Lists([query], [list(documents)], scores))[0]
        values = [float(score) if np.isfinite(score) else None for score in ranked.scores]
        return [{"corpus_id": int(i), "score": values[i]} for i in ranked.ranking[:top_k]]

    def rank_all(self, lists: Lists, finite: bool = True) -> list[Ranked]:
        """Rank the candidates of many queries. Raises BadInput where the first stage's scores do not fit.

        And NotFinite where a score is not; or, unless `finite`, such candidates come last, and are counted.
        """
        self._check(lists)
        nothing = Ranked(np.empty(0, np.intp), np.empty(0, np.float32))
        ranked = [nothing] * len(lists.queries)
        for batch in _batches(lists):
            for number, found in zip(batch, self._rank(lists.taken(batch), finite), strict=True):
                ranked[number] = found
        return ranked

    def _rank(self, lists: Lists, finite: bool) -> list[Ranked]:
        evidence, tokens = self.stage.evidence(lists)
        own, pairs = self.cascade, pairs_of(lists)
        firsts = np.cumsum([0, *(len(documents) for documents in lists.documents)])
        courses = [Course(each, own.order, own.rule, own.certificate.top, own.certificate.measure) for each in evidence]
        going = list(range(len(courses)))
        while going:
            asked = [(number, courses[number].next()) for number in going]
            asked = [(number, candidates) for number, candidates in asked if len(candidates)]
            going = [number for number, _ in asked]
            if asked:
                rows = np.concatenate([firsts[number] + candidates for number, candidates in asked])
                bounds = np.cumsum([len(candidates) for _, candidates in asked])[:-1]
                for (number, candidates), scores in zip(
                    asked, np.split(self._scores(pairs, tokens, rows, finite), bounds), strict=True
                ):
                    courses[number].tell(candidates, scores)
        return [Ranked(course.ranking(), course.scores, len(course.not_finite)) for course in courses]

    def _scores(
        self, pairs: Sequence[Pair], tokens: Tokens | None, rows: NDArray[np.intp], finite: bool
    ) -> NDArray[np.float32]:
        some = [pairs[row] for row in rows]
        logits = self.scorer.logits(some) if tokens is None else self.scorer.score_tokens(tokens.taken(rows))
        return self.folder.manifest.ranking(checked(some, logits) if finite else logits)

    def _check(self, lists: Lists) -> None:
        check_pairs(pairs_of(lists))
        depth, deepest = self.cascade.certificate.depth, max(map(len, lists.documents), default=0)
        if deepest > DEEPER * depth and not self._warned:
            self._warned = True
            log.warning("%s: %d candidates of a query; its certificate is of %.0f", self.folder.path, deepest, depth)
        if self.cascade.order.with_score != (lists.first_scores is not None):
            need = "needs" if self.cascade.order.with_score else "was made without"
            raise BadInput(f"{self.folder.path}: its cascade {need} the first stage's scores")
        for number, documents in enumerate(lists.documents):
            scores = lists.first_scores[number] if lists.first_scores is not None else None
            if scores is not None and (len(scores) != len(documents) or not np.isfinite(scores).all()):
                raise BadInput(f"query {lists.queries[number]!r:.60}: give one finite first-stage score a document")


def _batches(lists: Lists) -> list[list[int]]:
    """Queries that have documents, as many together as have some thousand of them, or one."""
    batches: list[list[int]] = []
    held = PAIRS_AT_ONCE
    for number, documents in enumerate(lists.documents):
        if documents:
            if held + len(documents) > PAIRS_AT_ONCE:
                batches.append([])
                held = 0
            batches[-1].append(number)
            held += len(documents)
    return batches


def open_cascade(
    folder: str | os.PathLike[str] | ModelFolder,
    *,
    threads: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> CascadeScorer:
    """Open the cascade of a model folder, which `xopt cascade` wrote: `rank(query, documents, top_k)`.

    Raises BadInput where there is none, or a file of it is missing or damaged.
    """
    model = folder if isinstance(folder, ModelFolder) else ModelFolder.open(os.fspath(folder), trust_remote_code)
    cascade = Cascade.of(model)
    scorer = open_scorer(model, cascade.variant, threads=threads, device=device)
    lexicon = Lexicon.load(model.checked(LEXICON)) if cascade.order.kind != "given" else None
    cheaper = _cheaper(model, cascade.order) if cascade.order.model else None
    stage = open_stage(scorer.encoder, cascade.order.kind, lexicon, cheaper, threads, device)
    return CascadeScorer(model, scorer, stage, cascade)


def _cheaper(folder: ModelFolder, order: Order) -> tuple[ModelFolder, str]:
    cheaper = ModelFolder.open(str(order.model), folder.trusted)
    variant = cheaper.variant(str(order.variant))
    if cheaper.manifest.files[variant.file] != order.sha256:
        raise BadInput(
            f"{order.model}: {variant.name} is not what the cascade of {folder.path} was certified with; make that "
            f"again with `xopt cascade {folder.path} --first {order.model} --data DATA`"
        )
    return cheaper, variant.name
