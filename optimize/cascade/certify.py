"""Finds the cheapest cascade whose expected loss on unseen queries is shown to be small.

A part of the queries fits the orders and chooses one, with a kind of rule. The others choose
only the rule's value. From the safest on, each cheaper one is tested until one is not shown to
lose at most `max_loss`. This is fixed-sequence testing: "Learn then Test", Angelopoulos et al.
2021, arXiv:2110.01052. All tests together err with a probability of at most 1 - `confidence`.
If that is None, the loss is controlled in expectation, see `xopt.optimize.judge.bounds`.
Losses are against scoring everything with the reference, the variant's own included.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.cascade.parts import (
    ORDERS,
    ScoredCandidates,
    make_evidence_source,
    preparing_queries,
    queries_with_evidence,
    score_candidates,
    variant_to_certify,
    without_repeated_queries,
)
from xopt.optimize.cascade.walk import (
    FittedOrder,
    Option,
    Walk,
    cheapest,
    cheapest_option,
    fit_first,
    walk_all,
)
from xopt.optimize.judge.bounds import least_mean, queries_needed, rounded_up, upper_bound
from xopt.optimize.judge.statistics import Interval, interval
from xopt.optimize.validate import EXACT_VARIANT, Reference
from xopt.runtime.cascade.cascade import Cascade, Certificate
from xopt.runtime.cascade.evidence import EvidenceSource, check_ranks
from xopt.runtime.cascade.features import Lexicon
from xopt.runtime.cascade.fingerprint import LEXICON
from xopt.runtime.cascade.loss import ranking_loss
from xopt.runtime.cascade.rule import Rule
from xopt.runtime.data.candidates import Candidates, query_hash
from xopt.runtime.errors import BadInput
from xopt.runtime.files import scratch_beside, sha256_of
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.progress import progress
from xopt.runtime.scoring.scorer import PlannedScorer, open_scorer

__all__ = [
    "Certified",
    "Terms",
    "certify",
    "cheapest",
    "cheapest_option",
    "fit_first",
    "split_queries",
    "warn_if_all_relevant",
    "write_cascade",
]

log = logging.getLogger(__name__)

LEAST_SAVED = 0.05  # of the pairs; less is not worth a cascade
LEAST_DEPTH = 2  # times `top`; with fewer candidates there is nothing to save
LEAST_WORST_LOSS = 3  # times `max_loss`, lost by the worst ranking


@dataclass(frozen=True)
class Certified:
    """What was tried, and what was shown.

    cascade: None if nothing cheaper is safe.
    variant_loss: if the variant scores everything.
    share: of a query's candidates, those scored.
    chosen_with: how many queries chose.
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


@dataclass(frozen=True)
class Terms:
    """What a certificate is to promise, see `Certificate`."""

    measure: str = "dcg"
    top: int = 10
    max_loss: float = 0.01
    confidence: float | None = 0.95

    @property
    def error(self) -> float | None:
        """The probability that the certificate is wrong, None in expectation."""
        return None if self.confidence is None else 1 - self.confidence


@dataclass(frozen=True)
class _Chosen:
    """The order and the kind of rule to certify, of these options."""

    source: EvidenceSource
    fitted: FittedOrder
    rule_kind: str
    options: tuple[Option, ...]


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

    - `variant`: what scores.
    - `first`: "given", "learned" or a cheaper model's folder. None tries the first two.
    - `column`: where first-stage scores were read, for the record.
    - `top`: the ranks that count.
    - `max_loss`: the expected loss to allow, against scoring everything with the reference.
    - `confidence`: that the loss is no larger on queries like these. None: in expectation.
    - `measure`: "dcg", a share of DCG with gains from the reference's scores. Or "top", the share
      of queries whose best documents are not all scored.

    Raises BadInput if the queries are too few, before anything is scored.
    """
    threads = threads or cores()
    terms = Terms(measure, top, max_loss, confidence)
    choosing, judging = split_queries(folder, candidates, variant, first, terms, device)
    folder.check_writable()
    both = Candidates(candidates.name, choosing.rows + judging.rows)
    chosen, walks = _searched(folder, variant, first, terms, choosing, judging, threads, device)
    rule, losses = _cheapest_rule(walks, chosen, terms)
    share = interval(np.array([each.share(rule, top) for each in walks]))
    certificate = None
    if losses is not None and share.mean + chosen.fitted.own_cost <= 1 - LEAST_SAVED:
        certificate = _certificate(terms, losses, share, judging, both, column)
    cascade = _kept(folder, variant, chosen, rule, certificate)
    return Certified(
        folder=str(folder.path),
        variant=variant,
        options=chosen.options,
        cascade=cascade,
        variant_loss=float(np.mean([each.losses[-1] for each in walks])),
        share=share,
        chosen_with=len(choosing.groups()),
        pairs=len(both.rows),
        python=_python(folder, device, top, chosen.fitted.order.with_score),
    )


def _searched(
    folder: ModelFolder,
    variant: str,
    first: str | None,
    terms: Terms,
    choosing: Candidates,
    judging: Candidates,
    threads: int,
    device: str,
) -> tuple[_Chosen, list[Walk]]:
    """Choose an order and a kind of rule, and walk along it with the queries that certify."""
    both = Candidates(choosing.name, choosing.rows + judging.rows)
    chosen_with = len(choosing.groups())
    with progress("cascade", total=5, unit="steps") as step:
        step.begin("finding the reference")
        scorer = open_scorer(folder, variant, threads=threads, device=device)
        sources = _sources(first, folder, scorer, choosing, threads, device)
        reference = Reference(folder, both, EXACT_VARIANT, threads, device)
        log.info("cascade: %d of %d queries choose", chosen_with, len(both.groups()))
        step.begin(f"scoring {chosen_with} queries that choose")
        scored = score_candidates(scorer, folder, choosing, reference.of(chosen_with))
        step.begin("choosing an order and a rule")
        chosen = _choose(sources, scored, terms)
        step.begin(f"scoring {len(judging.groups())} queries that certify")
        logits = reference.of(len(both.groups()))[len(choosing.rows) :]
        scored = score_candidates(scorer, folder, judging, logits)
        step.begin("certifying")
        walks = _walks(chosen, scored, terms)
    return chosen, walks


def _cheapest_rule(
    walks: Sequence[Walk], chosen: _Chosen, terms: Terms
) -> tuple[Rule, NDArray[np.float64] | None]:
    """Return the cheapest rule of the chosen kind that is safe, with its losses by query."""
    rules = chosen.fitted.rules(chosen.rule_kind)
    return cheapest(walks, rules, terms.top, terms.max_loss, terms.error, terms.measure)


def _kept(
    folder: ModelFolder, variant: str, chosen: _Chosen, rule: Rule, certificate: Certificate | None
) -> Cascade | None:
    """Write a cascade and return it; without a certificate the folder keeps what it had."""
    if certificate is None:
        if folder.manifest.cascade:
            log.warning("%s: keeps the cascade that it had, not shown safe here", folder.path)
        return None
    cascade = Cascade(chosen.fitted.order, rule, variant, certificate)
    write_cascade(folder, cascade, chosen.source.lexicon)
    return cascade


def _sources(
    first: str | None,
    folder: ModelFolder,
    scorer: PlannedScorer,
    candidates: Candidates,
    threads: int,
    device: str,
) -> list[tuple[EvidenceSource, dict[str, str]]]:
    """Return what each order to try goes by, with its origin."""
    kinds = [first] if first else ORDERS
    return [
        make_evidence_source(kind, folder, scorer, candidates, threads, device) for kind in kinds
    ]


def split_queries(
    folder: ModelFolder,
    candidates: Candidates,
    variant: str,
    first: str | None,
    terms: Terms,
    device: str,
) -> tuple[Candidates, Candidates]:
    """Return the queries that choose and those that certify.

    Queries that prepared a model do not certify. Raises BadInput if too few do.
    """
    check_ranks(folder)
    choosing, others = without_repeated_queries(candidates).split()
    if not choosing.rows:
        raise BadInput(f"{candidates.name}: a single query; give more of them")
    used = preparing_queries(folder, variant)
    if first not in (None, *ORDERS):
        cheaper = ModelFolder.open(str(first), folder.trusted)
        used |= preparing_queries(cheaper, variant_to_certify(cheaper, device))
    judging = others.without(used)
    queries = len(judging.groups())
    needed = queries_needed(terms.max_loss, terms.error)
    if queries < needed:
        left_out = len(others.groups()) - queries
        prepared = f" ({left_out} others prepared a model)" if left_out else ""
        raise BadInput(
            f"{judging.name}: {queries} queries are left to certify by{prepared}, "
            f"and it takes {needed} to show a loss under {terms.max_loss:g} "
            f"even if none loses anything; give {_ways_out(queries, terms)}"
        )
    depth = len(judging.rows) / queries
    if depth < LEAST_DEPTH * terms.top:
        raise BadInput(
            f"{judging.name}: {depth:.0f} candidates a query are too few to leave any out "
            f"if the best {terms.top} count; give more with `depth=`, or a smaller `top=`"
        )
    return choosing, judging


def _ways_out(queries: int, terms: Terms) -> str:
    ways = ["more queries"]
    if queries:
        shown = rounded_up(least_mean(queries, terms.error))
        if shown < 1:
            ways.append(f"`max_loss={shown:g}` or more")
    in_expectation = queries_needed(terms.max_loss, None)
    if terms.error is not None and queries >= in_expectation:
        ways.append(f"certify in expectation, which takes {in_expectation} and promises less")
    return ", or ".join(ways)


def _choose(
    sources: Sequence[tuple[EvidenceSource, dict[str, str]]],
    scored: ScoredCandidates,
    terms: Terms,
) -> _Chosen:
    """Fit the order of each source, and choose the cheapest with a kind of rule."""
    warn_if_all_relevant(scored, terms)
    with_score = scored.candidates.first_scores is not None
    fitted = {}
    options: list[Option] = []
    for source, cheaper in sources:
        kind = source.kind
        queries, seconds = queries_with_evidence(source, scored)
        cost = seconds / scored.seconds if kind != "given" else 0.0
        order = fit_first(queries, kind, with_score, terms.top, terms.measure, cost, cheaper)
        options += order.options(terms.max_loss)
        fitted[kind] = (source, order)
    best = cheapest_option(options)
    share = 100 * best.share
    log.info("cascade: %s order, %s rule: %.0f %% of the pairs", best.order, best.rule, share)
    source, order = fitted[best.order]
    return _Chosen(source, order, best.rule, tuple(options))


def _walks(chosen: _Chosen, scored: ScoredCandidates, terms: Terms) -> list[Walk]:
    queries, _ = queries_with_evidence(chosen.source, scored)
    order = chosen.fitted.order
    with progress("stopping at each depth", len(queries), "queries", work=len(queries)) as step:
        return walk_all(queries, order, terms.top, terms.measure, step)


def warn_if_all_relevant(scored: ScoredCandidates, terms: Terms) -> None:
    """Warn if logits are so high that even the worst ranking loses hardly any DCG."""
    if terms.measure != "dcg":
        return
    losses = []
    for rows in scored.candidates.groups().values():
        reference = scored.reference[rows]
        everything = np.ones(len(reference), bool)
        worst_ranking = np.argsort(reference)
        losses.append(ranking_loss(reference, worst_ranking, everything, terms.top))
    worst = float(np.mean(losses))
    if worst < LEAST_WORST_LOSS * terms.max_loss:
        log.warning(
            "cascade: the model finds nearly all candidates relevant: the worst %d lose only %.3g "
            'of DCG; a loss of %g says little, and `measure="top"` says more',
            terms.top,
            worst,
            terms.max_loss,
        )


def _certificate(
    terms: Terms,
    losses: NDArray[np.float64],
    share: Interval,
    judging: Candidates,
    both: Candidates,
    column: str | None,
) -> Certificate:
    texts = "\1".join(sorted(f"{row.query}\0{row.text}" for row in judging.rows))
    return Certificate(
        **asdict(terms),
        loss=float(losses.mean()),
        bound=upper_bound(losses, terms.error, terms.measure == "top"),
        share=share.mean,
        queries=len(losses),
        depth=len(judging.rows) / len(losses),
        first_stage=judging.name,
        column=column,
        data=hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest(),
        seen=sorted({query_hash(row.query) for row in both.rows}),
    )


def _python(folder: ModelFolder, device: str, top: int, with_score: bool) -> str:
    on_device = "" if device == "cpu" else f', device="{device}"'
    scores = ", first_scores=scores" if with_score else ""
    opened = f'open_cascade("{folder.path}"{on_device})'
    return f"{opened}.rank(query, documents, top_k={top}{scores})"


def write_cascade(folder: ModelFolder, cascade: Cascade, lexicon: Lexicon | None) -> None:
    """Write a cascade into the manifest, and its lexicon beside it."""
    values = asdict(cascade)
    if lexicon is None:
        folder.write(lambda to: replace(to, cascade=values))
        return
    place = folder.path / LEXICON
    with scratch_beside(place) as scratch:
        made = scratch / LEXICON
        lexicon.save(made)
        files = {LEXICON: sha256_of(made)}
        folder.write(
            lambda to: replace(to, files=to.files | files, cascade=values),
            lambda: made.replace(place),
        )
