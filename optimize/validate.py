"""Validate: do variants, or runs, still rank as the reference does?"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from xopt.optimize.judge.looks import look_sizes, one_sided_levels
from xopt.optimize.judge.statistics import (
    ALPHA,
    PASSED,
    UNDECIDED,
    Gate,
    Interval,
    Scores,
    interval,
    worst,
)
from xopt.optimize.judge.verdict import GATES, Judged, judge, not_repeatable, rounding_of
from xopt.runtime.data.agreement import first_stage_scores
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.data.trec import Qrels, Run, read_qrels, read_run
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.progress import Step, progress
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.scorer import PlannedScorer, open_scorer
from xopt.runtime.scoring.variants import REFERENCE, check_variant

__all__ = [
    "EXACT_VARIANT",
    "Reference",
    "Validation",
    "calibration_queries",
    "validate",
    "validate_runs",
]

log = logging.getLogger(__name__)

EXACT_VARIANT = "onnx-fp32"
EXACT_LOGITS = 1e-4  # the largest difference with which a variant scores for the reference
CHECKED_PAIRS = 128  # the first ones, which show the difference and each variant's noise
REFERENCE_BATCH = 8  # the fastest on small machines; scores do not depend on it


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Variants, or a run, compared with the reference on the same candidates.

    `queries` of `all_queries` were scored; `prepared_with` others calibrated or tuned a variant.
    `missing` documents are only in the reference run, `extra` ones only in the other.
    """

    data: str
    queries: int
    all_queries: int
    prepared_with: int = 0
    pairs: int
    truncated: int = 0
    empty: int = 0
    missing: int = 0
    extra: int = 0
    reference: str
    reference_difference: float = 0.0
    out_of_time: bool = False
    first_stage: dict[str, Interval] = field(default_factory=dict)
    judged: tuple[Judged, ...]
    verdict: str
    passed: bool


class Reference:
    """The reference's scores, computed as far as they are needed.

    The variant `exact` stands for sentence-transformers where its logits are the same on the
    first pairs, or else torch-fp32. `difference` is the largest one found there. Raises GateFailed
    where torch-fp32 differs too.
    """

    def __init__(
        self,
        folder: ModelFolder,
        candidates: Candidates,
        exact: str | None,
        threads: int,
        device: str,
    ) -> None:
        from xopt.runtime.bench.reference import ReferenceScorer

        self.folder = folder
        self.candidates = candidates
        self.threads = threads
        self.device = device
        self.ranking = folder.manifest.ranking
        pairs = candidates.pairs[:CHECKED_PAIRS]
        variant = folder.variant(REFERENCE)
        scorer = ReferenceScorer(folder, variant, threads, REFERENCE_BATCH, device)
        expected = self.ranking(scorer.score(pairs))
        tolerance = rounding_of(expected)
        names = [REFERENCE]
        if exact and exact in folder.manifest.variants and device == "cpu":
            names = [exact, REFERENCE]
        for name in names:
            self.name = name
            logits = self.scorer(name).logits(pairs)
            self.difference = _largest_difference(expected, self.ranking(logits))
            if self.difference <= min(EXACT_LOGITS, tolerance):
                break
        if not self.difference <= tolerance:  # NaN included
            raise GateFailed(
                f"{folder.path}: torch and sentence-transformers differ by {self.difference:.2g}, "
                "so there is no reference to trust"
            )
        self.queries = 0
        self.scores = expected[:0]
        found = f"{self.name} is the reference, {self.difference:.1g} from sentence-transformers"
        log.info("validate: %s", found)

    def scorer(self, variant: str) -> PlannedScorer:
        """Open a variant with the reference's threads and device."""
        return open_scorer(self.folder, variant, threads=self.threads, device=self.device)

    def of(self, queries: int) -> Scores:
        """Return the logits of the first `queries` queries' candidates."""
        if queries > self.queries:
            pairs = self.candidates.between(self.queries, queries).pairs
            log.info("validate: the reference scores %d pairs, to %d queries", len(pairs), queries)
            scores = self.scorer(self.name).score(pairs)
            self.scores = np.concatenate([self.scores, self.ranking(scores)])
            self.queries = queries
        return self.scores[: len(self.candidates.between(0, queries).rows)]


@dataclass(eq=False)
class _Evaluation:
    """One variant's scores so far, and its result at the last look."""

    reference: Reference
    variant: str
    gates: Sequence[Gate]
    looks: int = 0
    scores: Scores = field(default_factory=lambda: np.empty(0, np.float32))
    noise: float = 0.0
    instability: str = ""
    judged: Judged | None = None

    @property
    def verdict(self) -> str | None:
        return self.judged.verdict if self.judged else None

    def look(self, queries: int, level: float) -> None:
        """Score as many queries in all, and judge by them."""
        seen = self.reference.candidates.between(0, queries)
        expected = self.reference.of(queries)
        if self.variant in (self.reference.name, REFERENCE):  # shown to be the same
            self.scores = expected
            self.noise = self.reference.difference
        else:
            self._score(seen, expected)
        self.looks += 1
        self.judged = judge(
            seen,
            expected,
            self.scores,
            self.gates,
            name=self.variant,
            noise=self.noise,
            reference_noise=self.reference.difference,
            instability=self.instability,
            level=level,
            earlier=self.judged.gates if self.judged else (),
        )

    def _score(self, seen: Candidates, expected: Scores) -> None:
        log.info("validate: %s, %d queries", self.variant, len(seen.groups()))
        ranking = self.reference.ranking
        scorer = self.reference.scorer(self.variant)
        scores = ranking(scorer.logits(seen.pairs[len(self.scores) :]))
        if self.looks:
            self.scores = np.concatenate([self.scores, scores])
            return
        self.scores = scores
        again = ranking(_logits_in_other_batches(scorer, seen.pairs[:CHECKED_PAIRS]))
        self.noise = _largest_difference(scores, again)
        self.instability = not_repeatable(seen, expected, scores, again, self.gates)


def validate(
    folder: ModelFolder,
    variants: Sequence[str],
    candidates: Candidates,
    gates: Sequence[Gate] = GATES,
    threads: int | None = None,
    device: str = "cpu",
    *,
    exact: str | None = EXACT_VARIANT,
    minutes: float | None = None,
    first: bool = False,
) -> Validation:
    """Compare each variant's scores with the reference's, and check the gates.

    - `variants`: names of variants in the folder.
    - `gates`: what a variant has to hold to pass.
    - `exact`: the variant that scores the reference, once its logits have been shown to be the
      same. None: torch scores all of it.
    - `minutes`: draw no more queries after this time.
    - `first`: `variants` stand fastest first, and those after one that passed may stay undecided.

    Queries that calibrated a variant are left out. The others are drawn in growing groups, until
    all verdicts are decided; see `xopt.optimize.judge.looks`.

    Raises BadInput for a missing variant and where no query is left. Raises GateFailed where
    there is no reference to trust.
    """
    for variant in (REFERENCE, *variants):
        check_variant(folder.variant(variant), device)
    shuffled = candidates.shuffled()
    judging = shuffled.without(calibration_queries(folder, variants))
    all_queries = _count_queries(judging)
    limit_s = None if minutes is None else 60 * minutes
    with progress("validate", unit="pairs", limit_s=limit_s) as step:
        step.note = "finding the reference"
        reference = Reference(folder, judging, exact, threads or cores(), device)
        names = dict.fromkeys([REFERENCE, *variants])
        evaluations = [_Evaluation(reference, name, gates) for name in names]
        out_of_time = _evaluate(evaluations, look_sizes(all_queries), first, step)
    judged = tuple(evaluation.judged for evaluation in evaluations if evaluation.judged)
    seen = judging.between(0, max(each.queries for each in judged))
    first_stage = quality_by_query(seen, first_stage_scores(seen))
    verdict = worst([each.verdict for each in judged])
    return Validation(
        data=candidates.name,
        queries=len(seen.groups()),
        all_queries=all_queries,
        prepared_with=len(shuffled.groups()) - all_queries,
        pairs=len(seen.rows),
        truncated=Encoder(folder).encode(seen.pairs).truncated,
        empty=sum(not row.text.strip() for row in seen.rows),
        reference=reference.name,
        reference_difference=reference.difference,
        out_of_time=out_of_time,
        first_stage={measure: interval(values) for measure, values in first_stage.items()},
        judged=judged,
        verdict=verdict,
        passed=verdict == PASSED,
    )


def _count_queries(judging: Candidates) -> int:
    """Return how many queries may judge. Raises BadInput where there is none."""
    queries = len(judging.groups())
    if not queries:
        raise BadInput(
            f"{judging.name}: all its queries calibrated a variant; give other data to judge by"
        )
    return queries


def calibration_queries(folder: ModelFolder, variants: Iterable[str]) -> set[str]:
    """Return the hashes of the queries that calibrated any of the variants."""
    hashes: set[str] = set()
    for variant in variants:
        hashes.update(folder.variant(variant).recipe.get("calibrated_with", ()))
    return hashes


def _evaluate(
    evaluations: Sequence[_Evaluation],
    sizes: Sequence[int],
    first: bool,
    step: Step,
) -> bool:
    """Look at variants until all are decided. Return whether the time of `step` ended before."""
    levels = one_sided_levels(sizes, ALPHA)
    while True:
        evaluation = _next(evaluations, len(sizes), first)
        if evaluation is None:
            return False
        # a look takes as long as all before it: half of it may be over time
        if evaluation.looks and step.limit_s is not None and 1.5 * step.took_s > step.limit_s:
            return True
        queries = sizes[evaluation.looks]
        number = evaluations.index(evaluation) + 1
        step.note = (
            f"{evaluation.variant} ({number} of {len(evaluations)}) on {queries} of "
            f"{sizes[-1]} queries"
        )
        scored = len(evaluation.scores)
        evaluation.look(queries, levels[evaluation.looks])
        step.advance(len(evaluation.scores) - scored)


def _next(evaluations: Sequence[_Evaluation], looks: int, first: bool) -> _Evaluation | None:
    """Return the evaluation that needs a look next, if any."""
    for evaluation in evaluations:
        if not evaluation.looks:
            return evaluation
    undecided = [e for e in evaluations if e.verdict == UNDECIDED and e.looks < looks]
    if not first:
        return min(undecided, key=lambda evaluation: evaluation.looks, default=None)
    for evaluation in evaluations:
        if evaluation in undecided:
            return evaluation
        if evaluation.verdict == PASSED and evaluation.variant != REFERENCE:
            return None
    return None


def validate_runs(
    reference: Path, scores: Path, qrels: Path | None, gates: Sequence[Gate] = GATES
) -> Validation:
    """Compare a TREC run of any engine with a reference run, and check the gates.

    Documents of the reference that the run lacks come last in it, tied. Raises BadInput for files
    that are no runs, or no qrels of their queries, and for a gate that takes logits.
    """
    if any(gate.asked and gate.measure == "dcg10_loss" for gate in gates):
        raise BadInput(
            "the gate on dcg10_loss: takes logits, which the scores of a run need not be; "
            "give one on ndcg10_drop and `qrels=`"
        )
    expected = read_run(reference)
    run = read_run(scores)
    judgements = _judgements_of(expected, qrels, reference) if qrels else {}
    rows = [Row(query, "", document, "") for query in expected for document in expected[query]]
    candidates = Candidates(reference.name, tuple(rows), judgements)
    first = np.array([expected[row.query_id][row.doc_id] for row in rows])
    second = np.array([run.get(row.query_id, {}).get(row.doc_id, -np.inf) for row in rows])
    judged = (
        judge(candidates, first, first, gates, name=reference.name, logits=False),
        judge(candidates, first, second, gates, name=scores.name, logits=False),
    )
    common = int(np.isfinite(second).sum())
    verdict = worst([each.verdict for each in judged])
    return Validation(
        data=candidates.name,
        queries=len(expected),
        all_queries=len(expected),
        pairs=len(rows),
        missing=len(rows) - common,
        extra=sum(len(documents) for documents in run.values()) - common,
        reference=reference.name,
        judged=judged,
        verdict=verdict,
        passed=verdict == PASSED,
    )


def _judgements_of(expected: Run, qrels: Path, reference: Path) -> Qrels:
    """Return the qrels of a run's queries. Raises BadInput where there are none."""
    known = read_qrels(qrels)
    judgements = {query: known[query] for query in expected if query in known}
    if not judgements:
        raise BadInput(
            f"{qrels}: judges none of the {len(expected)} queries of {reference}; "
            "give qrels with the same ids"
        )
    return judgements


def _logits_in_other_batches(scorer: PlannedScorer, pairs: Sequence[Pair]) -> Scores:
    """Score pairs again in larger batches, even ones and odd ones apart."""
    larger = scorer.with_plan(replace(scorer.plan, tokens=2 * scorer.plan.tokens))
    even = larger.logits(pairs[::2])
    logits = np.empty((len(pairs), *even.shape[1:]), np.float32)
    logits[::2] = even
    if len(pairs) > 1:
        logits[1::2] = larger.logits(pairs[1::2])
    return logits


def _largest_difference(scores: Scores, again: Scores) -> float:
    return float(np.abs(scores[: len(again)].astype(np.float64) - again).max())
