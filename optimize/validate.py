"""Validate: do scores still rank as the reference's do? Agreement, quality, noise and gates."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.judge.looks import look_sizes, one_sided_levels
from xopt.optimize.judge.statistics import (
    ALPHA,
    FAILED,
    PASSED,
    UNDECIDED,
    Gate,
    Interval,
    interval,
)
from xopt.optimize.judge.verdict import FLOAT_NOISE, GATES, SAME, Judged, judge, not_repeatable
from xopt.runtime.data.agreement import first_stage_scores
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.data.trec import read_qrels, read_run
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.scorer import open_scorer
from xopt.runtime.scoring.variants import REFERENCE, check_variant

__all__ = ["Reference", "Validation", "validate", "validate_runs"]

log = logging.getLogger(__name__)

EXACT_VARIANT = "onnx-fp32"
EXACT = 1e-4  # of logits: what scores so near to sentence-transformers' own stands for it
NOISE_PAIRS = 128  # the noise floor is taken on the first ones
REFERENCE_BATCH = 8  # scores do not depend on it, and 8 is the fastest on small machines

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Validation:
    """All variants, or the run, on the same candidates. `first_stage` is empty where there are no
    qrels.

    queries and pairs: what was scored, of `all_queries`; `prepared_with` more calibrated a
    variant, or tuned, and were left out. reference: what scored for the reference, and
    `reference_difference` the largest difference of its logits to sentence-transformers' on the
    first pairs. out_of_time: the minutes ended before all was decided. `missing` and `extra`
    count documents of the reference that a run lacks, and a run's that the reference lacks.
    """

    data: str
    queries: int
    all_queries: int
    prepared_with: int
    pairs: int
    truncated: int
    empty: int
    missing: int
    extra: int
    reference: str
    reference_difference: float
    out_of_time: bool
    first_stage: dict[str, Interval]
    judged: tuple[Judged, ...]
    verdict: str
    passed: bool


class Reference:
    """The reference's scores of the first queries, as far as they were asked for."""

    def __init__(
        self,
        folder: ModelFolder,
        candidates: Candidates,
        exact: str | None,
        threads: int,
        device: str,
    ) -> None:
        from xopt.runtime.bench.reference import ReferenceScorer

        self.folder, self.candidates, self.threads, self.device = (
            folder,
            candidates,
            threads,
            device,
        )
        few, rank = candidates.pairs[:NOISE_PAIRS], folder.manifest.ranking
        itself = rank(
            ReferenceScorer(
                folder, folder.variant(REFERENCE), threads, REFERENCE_BATCH, device
            ).score(few)
        )
        tolerance = max(SAME * float(np.std(itself)), FLOAT_NOISE)
        able = exact is not None and device == "cpu" and exact in folder.manifest.variants
        for name in (exact, REFERENCE) if exact and able else (REFERENCE,):
            scores = rank(open_scorer(folder, name, threads=threads, device=device).logits(few))
            self.name, self.difference = name, _largest_difference(itself, scores)
            if self.difference <= min(EXACT, tolerance):
                break
        if not self.difference <= tolerance:
            raise GateFailed(
                f"{folder.path}: torch and sentence-transformers differ by {self.difference:.2g}; no reference to trust"
            )
        self.queries, self.scores = 0, itself[:0]
        log.info(
            "validate: %s is the reference, %.1g from sentence-transformers",
            self.name,
            self.difference,
        )

    def of(self, queries: int) -> Scores:
        """The logits of the first `queries` queries' candidates."""
        if queries > self.queries:
            pairs = self.candidates.between(self.queries, queries).pairs
            log.info("validate: the reference scores %d pairs, to %d queries", len(pairs), queries)
            scorer = open_scorer(self.folder, self.name, threads=self.threads, device=self.device)
            self.scores = np.concatenate(
                [self.scores, self.folder.manifest.ranking(scorer.score(pairs))]
            )
            self.queries = queries
        return self.scores[: len(self.candidates.between(0, queries).rows)]


class _Course:
    """A variant on its way to a verdict: its scores so far, and what the last look said."""

    def __init__(self, reference: Reference, variant: str, gates: Sequence[Gate]) -> None:
        self.reference, self.variant, self.gates = reference, variant, gates
        self.looks, self.scores = 0, np.empty(0, np.float32)
        self.noise, self.unsteady = 0.0, ""
        self.judged: Judged | None = None

    def look(self, queries: int, level: float) -> None:
        """Score up to so many queries and judge by all of them."""
        r = self.reference
        seen, expected = r.candidates.between(0, queries), r.of(queries)
        if self.variant in (r.name, REFERENCE):  # shown to be the same
            self.scores, self.noise = expected, r.difference
        else:
            log.info("validate: %s, %d queries", self.variant, queries)
            scorer = open_scorer(r.folder, self.variant, threads=r.threads, device=r.device)
            rank = r.folder.manifest.ranking
            fresh = rank(scorer.logits(seen.pairs[len(self.scores) :]))
            if not self.looks:
                other = scorer.with_plan(replace(scorer.plan, tokens=2 * scorer.plan.tokens))
                again = rank(_again(other.logits, seen.pairs))
                self.noise = _largest_difference(fresh, again)
                self.unsteady = not_repeatable(seen, expected, fresh, again, self.gates)
            self.scores = np.concatenate([self.scores, fresh]) if self.looks else fresh
        self.looks += 1
        self.judged = judge(
            seen,
            expected,
            self.scores,
            self.gates,
            name=self.variant,
            noise=self.noise,
            floor=r.difference,
            unsteady=self.unsteady,
            level=level,
            settled=[g for g in self.judged.gates if g.verdict != UNDECIDED] if self.judged else (),
        )


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
    """Score candidates with the reference and each variant, compare, and hold the gates against it.

    Queries are drawn in growing groups until each variant is decided, the data or the `minutes`
    end; the levels of the looks are those of `xopt.optimize.judge.looks`. Queries that calibrated
    one of the variants are left out. The reference is the FP32 model as sentence-transformers
    runs it; where `exact` gives its logits within `EXACT` on the first pairs, that variant scores
    the rest of the reference on a CPU. With `first`, `variants` stand by speed, fastest first,
    and once one has passed the slower ones are not followed any further. Models of several labels
    are judged by what ranks, and where nothing does by the label with the largest logit. Raises
    BadInput where a variant is missing or no query is left, GateFailed where the reference is not
    to be trusted.
    """
    for variant in (REFERENCE, *variants):
        check_variant(folder.variant(variant), device)
    start, threads = time.monotonic(), threads or cores()
    used = {
        hash_ for v in variants for hash_ in folder.variant(v).recipe.get("calibrated_with", ())
    }
    whole = candidates.shuffled()
    left = whole.without(used)
    if not left.rows:
        raise BadInput(
            f"{candidates.name}: all its queries calibrated a variant; give other data to judge by"
        )
    reference = Reference(folder, left, exact, threads, device)
    sizes = look_sizes(len(left.groups()))
    levels = one_sided_levels(sizes, ALPHA)
    courses = [
        _Course(reference, variant, gates) for variant in dict.fromkeys([REFERENCE, *variants])
    ]
    out_of_time = False
    while True:
        course = _next(courses, len(sizes), first)
        if course is None:
            break
        took = time.monotonic() - start
        # a look takes as long as all before it
        if course.looks and minutes is not None and took * 1.5 > 60 * minutes:
            out_of_time = True
            break
        course.look(sizes[course.looks], levels[course.looks])
    judged = tuple(course.judged for course in courses if course.judged)
    seen = left.between(0, max(each.queries for each in judged))
    return Validation(
        data=candidates.name,
        queries=len(seen.groups()),
        all_queries=len(left.groups()),
        prepared_with=len(whole.groups()) - len(left.groups()),
        pairs=len(seen.rows),
        truncated=Encoder(folder).encode(seen.pairs).truncated,
        empty=sum(not text.strip() for _, text in seen.pairs),
        missing=0,
        extra=0,
        reference=reference.name,
        reference_difference=reference.difference,
        out_of_time=out_of_time,
        first_stage=_quality(seen, first_stage_scores(seen)),
        judged=judged,
        verdict=_worst(judged),
        passed=_worst(judged) == PASSED,
    )


def _next(courses: Sequence[_Course], looks: int, first: bool) -> _Course | None:
    """The variant to follow next; None where each is decided, at its last look, or slower than
    one that passed.
    """
    new = next((course for course in courses if not course.looks), None)
    if new:
        return new
    if first:
        passed = [
            i
            for i, c in enumerate(courses)
            if c.judged and c.judged.verdict == PASSED and c.variant != REFERENCE
        ]
        courses = courses[: passed[0]] if passed else courses
    open_ = [c for c in courses if c.judged and c.judged.verdict == UNDECIDED and c.looks < looks]
    return (open_[0] if first else min(open_, key=lambda course: course.looks)) if open_ else None


def _worst(judged: Sequence[Judged]) -> str:
    verdicts = {each.verdict for each in judged}
    return next(verdict for verdict in (FAILED, UNDECIDED, PASSED) if verdict in verdicts)


def validate_runs(
    reference: Path, scores: Path, qrels: Path | None, gates: Sequence[Gate] = GATES
) -> Validation:
    """Hold a TREC run, of any engine, against another one. Raises BadInput where a file is none.

    The documents are the reference's. A document that the run lacks comes last in it, tied with
    the others.
    """
    if any(gate.asked and gate.measure == "dcg10_loss" for gate in gates):
        raise BadInput(
            "--max-dcg-loss: takes logits, and the scores of a run may be anything; --max-ndcg-drop with --qrels"
        )
    expected, got = read_run(reference), read_run(scores)
    rows = tuple(
        Row(query_id, "", doc_id, "")
        for query_id, ranking in expected.items()
        for doc_id in ranking
    )
    judgements = {q: j for q, j in read_qrels(qrels).items() if q in expected} if qrels else {}
    if qrels and not judgements:
        raise BadInput(f"{qrels}: judges none of the {len(expected)} queries of {reference}")
    candidates = Candidates(reference.name, rows, judgements)
    first = np.array([expected[row.query_id][row.doc_id] for row in rows])
    second = np.array([got.get(row.query_id, {}).get(row.doc_id, -np.inf) for row in rows])
    judged = (
        judge(candidates, first, first, gates, name=reference.name, logits=False),
        judge(candidates, first, second, gates, name=scores.name, logits=False),
    )
    common = sum(row.doc_id in got.get(row.query_id, {}) for row in rows)
    return Validation(
        data=candidates.name,
        queries=len(expected),
        all_queries=len(expected),
        prepared_with=0,
        pairs=len(rows),
        truncated=0,
        empty=0,
        missing=len(rows) - common,
        extra=sum(map(len, got.values())) - common,
        reference=reference.name,
        reference_difference=0.0,
        out_of_time=False,
        first_stage={},
        judged=judged,
        verdict=_worst(judged),
        passed=_worst(judged) == PASSED,
    )


def _quality(candidates: Candidates, scores: Scores) -> dict[str, Interval]:
    return {name: interval(values) for name, values in quality_by_query(candidates, scores).items()}


def _again(score: Callable[[Sequence[Pair]], Scores], pairs: Sequence[Pair]) -> Scores:
    """The scores of the first pairs again, in other batches and another order."""
    few = pairs[:NOISE_PAIRS]
    parts = [
        (part, score(few[part])) for part in (slice(0, None, 2), slice(1, None, 2)) if few[part]
    ]
    again = np.empty((len(few), *parts[0][1].shape[1:]), np.float32)
    for part, scores in parts:
        again[part] = scores
    return again


def _largest_difference(scores: Scores, again: Scores) -> float:
    return float(np.abs(scores[: len(again)].astype(np.float64) - again).max())
