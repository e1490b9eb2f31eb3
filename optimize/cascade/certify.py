"""Certify: the cheapest order and stop rule whose expected loss on unseen queries is shown to be
small.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.cascade.enough import check_enough, warn_of_scale
from xopt.optimize.cascade.fit import Query, fit_order, folds
from xopt.optimize.cascade.parts import (
    ORDERS,
    Scored,
    default_variant,
    distinct,
    open_first,
    queries_of,
    told,
)
from xopt.optimize.cascade.walk import Walk, walk
from xopt.optimize.judge.bounds import upper_bound
from xopt.optimize.judge.statistics import Interval, interval
from xopt.optimize.validate import EXACT_VARIANT, Reference
from xopt.runtime.cascade.cascade import Cascade, Certificate
from xopt.runtime.cascade.features import Lexicon
from xopt.runtime.cascade.fingerprint import LEXICON
from xopt.runtime.cascade.order import Order
from xopt.runtime.cascade.rule import Rule
from xopt.runtime.data.candidates import Candidates, query_hash
from xopt.runtime.errors import BadInput
from xopt.runtime.files import scratch_beside, sha256_of
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring.scorer import open_scorer

__all__ = [
    "Certified",
    "Fitted",
    "Option",
    "certify",
    "cheapest",
    "cheapest_option",
    "fit_first",
    "write_cascade",
]

log = logging.getLogger(__name__)

FEWEST_SAVED = 0.05  # of the pairs: less is not worth a cascade
# of a share, on the few queries that choose: what a rule has to gain over the one that asks as it
# goes
NOISE = 0.1
VALUES = {  # of each rule, the safest first: the first one scores everything
    "gain": (-1.0, 0.0, *np.geomspace(1e-4, 0.5, 80).tolist()),
    "depth": tuple(np.geomspace(1, 0.02, 80).tolist()),  # of the deepest query's candidates
    "score": tuple(np.linspace(0, 0.98, 80).tolist()),  # of all predictions, how many lie below
}


@dataclass(frozen=True)
class Option:
    """An order with a kind of rule, on the queries that choose.

    share: of the pairs, how many are scored where `max_loss` is lost. To certify that takes more
    of them; but of a smaller loss so few queries say nothing, since one that loses much makes all
    of it. cost: the same with the first stage's own time, in what it takes to score everything.
    """

    order: str
    rule: str
    share: float
    cost: float


@dataclass(frozen=True)
class Certified:
    """What was tried, and what was shown.

    `cascade` is None where nothing cheaper is safe: score everything. variant_loss: where
    everything is scored, by the variant. share: of a query's candidates, how many are scored, in
    the mean over queries. chosen_with: queries that chose. pairs: of all queries. python: what
    ranks by it.
    """

    folder: str
    variant: str
    options: tuple[Option, ...]
    cascade: Cascade | None
    variant_loss: float
    share: Interval
    chosen_with: int
    pairs: int
    python: str


def certify(
    folder: ModelFolder,
    candidates: Candidates,
    variant: str,
    *,
    first: str | None = None,
    column: str | None = None,
    top: int = 10,
    max_loss: float = 0.01,
    confidence: float | None = 0.95,
    measure: str = "dcg",
    threads: int | None = None,
    device: str = "cpu",
) -> Certified:
    """Find a cascade, certify it, and write it into the manifest.

    A part of the queries, as `Candidates.split` has it, fits the orders and chooses one with a
    kind of rule. The others choose nothing but the rule's value: beginning with the one that
    scores everything, each cheaper one is tested at the same level until one is not shown to lose
    at most `max_loss` (fixed-sequence testing, as in "Learn then Test", Angelopoulos et al. 2021,
    arXiv:2110.01052), so that all tests together err with a probability of at most 1 -
    `confidence`; where that is None, the loss is controlled in expectation, see
    `xopt.optimize.judge.bounds`. Losses are against scoring everything with the reference, the
    variant's own included. `first` is "given", "learned" or a cheaper model's folder, and None
    tries the first two; `column` is where the first stage's scores come from, for the record.
    Raises BadInput where the queries are too few, before anything is scored.
    """
    threads, error = threads or cores(), None if confidence is None else 1 - confidence
    choosing, others = distinct(candidates).split()
    if not choosing.rows:
        raise BadInput(
            f"{candidates.name}: a single query; give more, some to choose by and some to certify"
        )
    cheaper = None if first in (None, *ORDERS) else ModelFolder.open(str(first), folder.trusted)
    judging = others.without(
        told(folder, variant, (cheaper, default_variant(cheaper, device)) if cheaper else None)
    )
    check_enough(
        folder, judging, len(others.groups()) - len(judging.groups()), top, max_loss, error
    )
    folder.check_writable()
    scorer = open_scorer(folder, variant, threads=threads, device=device)
    opened = [
        open_first(kind, folder, scorer, choosing, threads, device)
        for kind in ((first,) if first else ORDERS)
    ]
    both = Candidates(candidates.name, choosing.rows + judging.rows)
    reference = Reference(folder, both, EXACT_VARIANT, threads, device)
    log.info(
        "cascade: %d queries choose, %d certify", len(choosing.groups()), len(judging.groups())
    )
    few = Scored.by(scorer, folder, choosing, reference.of(len(choosing.groups())))
    warn_of_scale(few, top, max_loss, measure)
    fitted = []
    for stage, names in opened:
        queries, took_s = queries_of(stage, few)
        cost = took_s / few.seconds if stage.kind != "given" else 0.0
        fitted.append(
            fit_first(queries, stage.kind, both.first_scores is not None, top, measure, cost, names)
        )
    options = [option for each in fitted for option in each.options(max_loss)]
    best = cheapest_option(options)
    log.info(
        "cascade: %s order, %s rule: %.0f %% of the pairs", best.order, best.rule, 100 * best.share
    )
    chosen = next(each for each in fitted if each.order.kind == best.order)
    scores = reference.of(len(both.groups()))[len(choosing.rows) :]
    stage = next(stage for stage, _ in opened if stage.kind == best.order)
    queries, _ = queries_of(stage, Scored.by(scorer, folder, judging, scores))
    walks = [walk(query, chosen.order, top, measure) for query in queries]
    rule, losses = cheapest(walks, chosen.rules(best.rule), top, max_loss, error, measure)
    share = interval(np.array([each.stop(rule, top)[0] / len(each.predicted) for each in walks]))
    own = float(np.mean([each.losses[-1] for each in walks]))
    cascade = None
    if losses is not None and share.mean + chosen.own_cost <= 1 - FEWEST_SAVED:
        certificate = Certificate(
            measure=measure,
            top=top,
            max_loss=max_loss,
            confidence=confidence,
            loss=float(losses.mean()),
            bound=upper_bound(losses, error, measure == "top"),
            share=share.mean,
            queries=len(losses),
            depth=len(judging.rows) / len(losses),
            first_stage=candidates.name,
            column=column,
            data=_fingerprint(judging),
            seen=tuple(sorted({query_hash(row.query) for row in both.rows})),
        )
        cascade = Cascade(chosen.order, rule, variant, certificate)
        write_cascade(folder, cascade, stage.lexicon)
    elif folder.manifest.cascade:
        log.warning(
            "cascade: %s keeps the cascade that it had: what rerank --cascade goes by is not shown safe here",
            folder.path,
        )
    where = "" if device == "cpu" else f', device="{device}"'
    scored = ", first_scores=scores" if chosen.order.with_score else ""
    python = f'open_cascade("{folder.path}"{where}).rank(query, documents, top_k={top}{scored})'
    chose = len(choosing.groups())
    return Certified(
        str(folder.path),
        variant,
        tuple(options),
        cascade,
        own,
        share,
        chose,
        len(both.rows),
        python,
    )


@dataclass(frozen=True)
class Fitted:
    """An order, fitted on all queries that choose; and walks of each, by orders that were fitted
    without it.
    """

    order: Order
    walks: list[Walk]
    top: int
    own_cost: float = 0.0

    def options(self, max_loss: float) -> list[Option]:
        """The order with each kind of rule."""
        return [self._option(kind, max_loss) for kind in VALUES]

    def rules(self, kind: str) -> list[Rule]:
        """Rules of a kind, the safest first."""
        deepest = max(len(walk.predicted) for walk in self.walks)
        predicted = np.concatenate([walk.predicted for walk in self.walks])
        values = VALUES[kind]
        if kind == "depth":
            return [
                Rule(kind, float(depth))
                for depth in sorted(
                    {max(self.top, round(deepest * v)) for v in values}, reverse=True
                )
            ]
        if kind == "score":  # nothing lies below the first one
            return [Rule(kind, float(np.quantile(predicted, v)) if v else -1e9) for v in values]
        return [Rule(kind, value) for value in values]

    def _option(self, kind: str, max_loss: float) -> Option:
        share = 1.0
        for rule in self.rules(kind):
            stops = [walk.stop(rule, self.top) for walk in self.walks]
            if np.mean([loss for _, loss in stops]) > max_loss:
                break
            share = float(
                np.mean(
                    [
                        d / len(walk.predicted)
                        for walk, (d, _) in zip(self.walks, stops, strict=True)
                    ]
                )
            )
        return Option(self.order.kind, kind, share, share + self.own_cost)


def fit_first(
    queries: Sequence[Query],
    kind: str,
    with_score: bool,
    top: int,
    measure: str,
    own_cost: float = 0.0,
    names: dict[str, Any] | None = None,
) -> Fitted:
    """Fit an order by the queries that choose; `names` says which model it goes by, where it goes
    by one.
    """
    walks: list[Walk] = []
    for others, held in folds(queries):
        order = fit_order(others, kind, with_score)
        walks += [walk(query, order, top, measure) for query in held]
    order = fit_order(queries, kind, with_score)
    return Fitted(replace(order, **(names or {})), walks, top, own_cost)


def cheapest_option(options: Sequence[Option]) -> Option:
    """The one to certify."""
    return min(options, key=lambda option: option.cost + NOISE * (option.rule != "gain"))


def cheapest(
    walks: Sequence[Walk],
    rules: Sequence[Rule],
    top: int,
    max_loss: float,
    error: float | None,
    measure: str,
) -> tuple[Rule, NDArray[np.float64] | None]:
    """The last rule of those that are shown, one after the other, to lose at most `max_loss`, and
    each query's loss.

    The first rule, without losses, where not even that one is. In expectation a query's loss is
    the largest of any safer rule, since conformal risk control takes losses that never fall.
    """
    shown: tuple[Rule, NDArray[np.float64] | None] = rules[0], None
    largest = np.zeros(len(walks))
    for rule in rules:
        losses = np.array([each.stop(rule, top)[1] for each in walks])
        if error is None:
            losses = largest = np.maximum(largest, losses)
        if upper_bound(losses, error, measure == "top") > max_loss:
            break
        shown = rule, losses
    return shown


def _fingerprint(candidates: Candidates) -> str:
    """The sha256 of queries and documents, whatever their order."""
    rows = sorted(f"{row.query}\0{row.text}" for row in candidates.rows)
    return hashlib.sha256("\1".join(rows).encode("utf-8", "surrogatepass")).hexdigest()


def write_cascade(folder: ModelFolder, cascade: Cascade, lexicon: Lexicon | None) -> None:
    """Write a cascade into the manifest, and the lexicon that its order goes by beside it."""
    place = folder.path / LEXICON
    if lexicon is None:
        folder.write(lambda to: replace(to, cascade=cascade.values()))
        return
    with scratch_beside(place) as scratch:
        made = scratch / LEXICON
        lexicon.save(made)
        files = {LEXICON: sha256_of(made)}
        folder.write(
            lambda to: replace(to, files=to.files | files, cascade=cascade.values()),
            lambda: made.replace(place),
        )
