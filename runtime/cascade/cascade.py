"""Cascades: an order, a stop rule and a variant, with the certificate of what they may lose; and
how they rank.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.cascade.features import Lexicon
from xopt.runtime.cascade.fingerprint import LEXICON, model_fingerprint
from xopt.runtime.cascade.order import Order
from xopt.runtime.cascade.rule import Course, Rule
from xopt.runtime.cascade.stage import Lists, Stage, open_stage, pairs_of
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.encode import Pair, Tokens, check_pairs
from xopt.runtime.scoring.scorer import PlannedScorer, checked, open_scorer
from xopt.runtime.scoring.stages import Stages

__all__ = [
    "Cascade",
    "CascadeScorer",
    "Certificate",
    "Lists",
    "Ranked",
    "cheaper_of",
    "open_cascade",
]

log = logging.getLogger(__name__)

DEEPER = 2  # times the certificate's candidates a query, from which on that is said
# candidates of the queries on their way; where half of them are through, others join
PAIRS_AT_ONCE = 16384


@dataclass(frozen=True)
class Certificate:
    """What a cascade may lose on queries like these.

    measure: "dcg", the share of DCG@top that is lost, gains by the reference's scores; "top", the
    share of queries of whose best `top` by the reference one is not scored. With `confidence`, or
    in expectation where that is None, the mean over queries is at most `max_loss`. On the queries
    that it was found on, none of which chose anything, it was `loss`, and `bound` is what the
    test made of it, though only `max_loss` is promised; `share` of a query's pairs were scored
    there, in the mean. depth: candidates a query. first_stage: where they came from; column:
    where their scores stood. data: the sha256 of the queries and their documents. seen: hashes of
    all queries that chose or certified.
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
    """An order, a stop rule and the variant that scores, with their certificate; the manifest
    keeps it.
    """

    order: Order
    rule: Rule
    variant: str
    certificate: Certificate

    @staticmethod
    def of(folder: ModelFolder) -> Cascade:
        """The cascade of a model folder. Raises BadInput where it has none."""
        kept = folder.manifest.cascade
        if not kept:
            raise BadInput(
                f"{folder.path}: has no cascade; make one with `xopt cascade {folder.path} --data DATA`"
            )
        try:
            order, certificate = dict(kept["order"]), dict(kept["certificate"])
            for name in ("weights", "scale", "variances", "quantiles"):
                order[name] = tuple(order[name])
            order["widths"] = tuple(tuple(each) for each in order["widths"])
            certificate["seen"] = tuple(certificate["seen"])
            return Cascade(
                Order(**order), Rule(**kept["rule"]), kept["variant"], Certificate(**certificate)
            )
        except (KeyError, TypeError) as error:
            raise BadInput(
                f"{folder.path}: its cascade is of another version of xopt ({error}); make it again with `xopt cascade`"
            ) from error

    def beyond(self, top_k: int | None) -> str:
        """What to warn of where more of a ranking is asked for than its certificate is of;
        nothing where it is not.
        """
        top = self.certificate.top
        more = top_k is not None and top_k > top
        return (
            f"the best {top_k} are asked for; its certificate is of {top} (`xopt cascade --top {top_k}`)"
            if more
            else ""
        )

    def values(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Ranked:
    """A query's candidates: their places, best first; their logits in the order given, NaN of
    those not scored.

    not_finite: how many were scored, and have no finite score.
    """

    ranking: NDArray[np.intp]
    scores: NDArray[np.float32]
    not_finite: int = 0

    @property
    def scored(self) -> int:
        """How many were scored."""
        return int(np.isfinite(self.scores).sum())


@dataclass(frozen=True, eq=False)
class _Going:
    """A query on its way: its number, its pairs, their tokens where the order made them."""

    number: int
    pairs: list[Pair]
    tokens: Tokens | None
    course: Course

    def ranked(self) -> Ranked:
        """How its candidates rank by now."""
        return Ranked(self.course.ranking(), self.course.scores, len(self.course.not_finite))


class CascadeScorer:
    """Ranks each query's candidates, scoring as few of them as its cascade asks for.

    Blocks of many queries run together, so that small blocks do not waste the cores.
    """

    def __init__(
        self, folder: ModelFolder, scorer: PlannedScorer, stage: Stage, cascade: Cascade
    ) -> None:
        self.folder, self.scorer, self.stage, self.cascade = folder, scorer, stage, cascade
        self._warned: set[str] = set()

    @property
    def stages(self) -> Stages:
        """Where the time of all calls so far went. A pair that a cheaper model cuts too is
        counted once.
        """
        own, model = self.scorer.stages, self.stage.model
        return own.plus(replace(model.stages, truncated=0)) if model else own

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        first_scores: Sequence[float] | None = None,
    ) -> list[dict[str, Any]]:
        """Documents, in the first stage's order, best first: `corpus_id` and `score`, the logit.

        A document that was not scored has the score None, and comes after those that were.
        `first_scores` are the first stage's, higher is better, where the cascade was made with
        them.
        """
        if beyond := self.cascade.beyond(top_k):
            self._warn(beyond, "top")
        scores = None if first_scores is None else [np.asarray(first_scores, np.float32)]
        ranked = self.rank_all(Lists([query], [list(documents)], scores))[0]
        values = [float(score) if np.isfinite(score) else None for score in ranked.scores]
        return [{"corpus_id": int(i), "score": values[i]} for i in ranked.ranking[:top_k]]

    def rank_all(self, lists: Lists, finite: bool = True) -> list[Ranked]:
        """Rank the candidates of many queries. Raises BadInput where the first stage's scores do
        not fit.

        And NotFinite where a score is not; or, unless `finite`, such candidates come last, and
        are counted.
        """
        self._check(lists)
        ranked = [Ranked(np.empty(0, np.intp), np.empty(0, np.float32))] * len(lists.queries)
        waiting = deque(number for number, documents in enumerate(lists.documents) if documents)
        going: list[_Going] = []
        while waiting or going:
            going += self._started(lists, waiting, sum(len(each.pairs) for each in going))
            asked = []
            for each in going:
                if len(candidates := each.course.next()):
                    asked.append((each, candidates))
                else:
                    ranked[each.number] = each.ranked()
            going = [each for each, _ in asked]
            if asked:
                self._tell(asked, finite)
        return ranked

    def _started(self, lists: Lists, waiting: deque[int], held: int) -> list[_Going]:
        """Queries that wait, where those on their way have become few; each leaves `waiting`."""
        numbers: list[int] = []
        few = held <= PAIRS_AT_ONCE // 2
        while (
            few
            and waiting
            and (not held or held + len(lists.documents[waiting[0]]) <= PAIRS_AT_ONCE)
        ):
            numbers.append(waiting.popleft())
            held += len(lists.documents[numbers[-1]])
        own, started = self.cascade, []
        evidence = self.stage.evidence(lists.taken(numbers)) if numbers else []
        for number, (each, tokens) in zip(numbers, evidence, strict=True):
            course = Course(each, own.order, own.rule, own.certificate.top, own.certificate.measure)
            started.append(_Going(number, pairs_of(lists.taken([number])), tokens, course))
        return started

    def _tell(self, asked: Sequence[tuple[_Going, NDArray[np.intp]]], finite: bool) -> None:
        """Score the candidates that queries ask for, all together, and tell them."""
        pairs = [each.pairs[row] for each, candidates in asked for row in candidates]
        tokens = [each.tokens.taken(candidates) for each, candidates in asked if each.tokens]
        logits = (
            self.scorer.score_tokens(Tokens.joined(tokens)) if tokens else self.scorer.logits(pairs)
        )
        scores = self.folder.manifest.ranking(checked(pairs, logits) if finite else logits)
        start = 0
        for each, candidates in asked:
            each.course.tell(candidates, scores[start : start + len(candidates)])
            start += len(candidates)

    def _warn(self, of: str, kind: str) -> None:
        """Once of each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s: %s", self.folder.path, of)

    def _check(self, lists: Lists) -> None:
        check_pairs(pairs_of(lists))
        depth, deepest = self.cascade.certificate.depth, max(map(len, lists.documents), default=0)
        if deepest > DEEPER * depth:
            self._warn(
                f"{deepest} candidates of a query; its certificate is of {depth:.0f}", "depth"
            )
        if self.cascade.order.with_score != (lists.first_scores is not None):
            need = "needs" if self.cascade.order.with_score else "was made without"
            raise BadInput(f"{self.folder.path}: its cascade {need} the first stage's scores")
        for number, documents in enumerate(lists.documents):
            scores = lists.first_scores[number] if lists.first_scores is not None else None
            if scores is not None and (
                len(scores) != len(documents) or not np.isfinite(scores).all()
            ):
                raise BadInput(
                    f"query {lists.queries[number]!r:.60}: give one finite first-stage score a document"
                )


def open_cascade(
    folder: str | os.PathLike[str] | ModelFolder,
    *,
    threads: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> CascadeScorer:
    """Open the cascade of a model folder, which `xopt cascade` wrote: `rank(query, documents,
    top_k)`.

    Raises BadInput where there is none, or a file of it is missing or damaged.
    """
    model = (
        folder
        if isinstance(folder, ModelFolder)
        else ModelFolder.open(os.fspath(folder), trust_remote_code)
    )
    cascade = Cascade.of(model)
    scorer = open_scorer(model, cascade.variant, threads=threads, device=device)
    lexicon = None
    if cascade.order.kind != "given":
        lexicon = Lexicon.load(
            model.checked(LEXICON, f"make it again with `xopt cascade {model.path} --data DATA`")
        )
    cheaper = cheaper_of(model, cascade.order) if cascade.order.model else None
    stage = open_stage(scorer, cascade.order.kind, lexicon, cheaper, threads, device)
    return CascadeScorer(model, scorer, stage, cascade)


def cheaper_of(folder: ModelFolder, order: Order) -> tuple[ModelFolder, str]:
    """The cheaper model that a cascade's order goes by, and its variant, as they were: where it
    was, or beside DIR.
    """
    places = (Path(str(order.model)), folder.path.resolve().parent / Path(str(order.model)).name)
    place = next((each for each in places if each.is_dir()), None)
    if place is None:
        raise BadInput(
            f"{order.model}: no such folder, nor one of that name beside {folder.path}, whose cascade goes by it; make "
            f"that again with `xopt cascade {folder.path} --first SMALL --data DATA`"
        )
    cheaper = ModelFolder.open(place, folder.trusted)
    variant = cheaper.variant(str(order.variant))
    if model_fingerprint(cheaper, variant.name, cascade=False) != order.sha256:
        raise BadInput(
            f"{order.model}: {variant.name} is not what the cascade of {folder.path} was certified with; make that "
            f"again with `xopt cascade {folder.path} --first {order.model} --data DATA`"
        )
    return cheaper, variant.name
