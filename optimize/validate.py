"""Validate: do scores still rank as the reference's do? Agreement, quality, noise and gates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.judge.statistics import PASSED, Gate, Interval, interval
from xopt.optimize.judge.verdict import FLOAT_NOISE, GATES, SAME, Judged, judge, not_repeatable
from xopt.runtime.bench.reference import REFERENCE, ReferenceScorer
from xopt.runtime.data.agreement import first_stage_scores
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.data.trec import read_qrels, read_run
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.scorer import open_scorer
from xopt.runtime.scoring.variants import check_variant

__all__ = ["Validation", "validate", "validate_runs"]

log = logging.getLogger(__name__)

NOISE_PAIRS = 128  # the noise floor is taken on the first ones
REFERENCE_BATCH = 8  # scores do not depend on it, and 8 is the fastest on small machines

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Validation:
    """All variants, or the run, on the same candidates. `first_stage` is empty where there are no qrels.

    `missing` and `extra` count documents of the reference that a run lacks, and a run's that the reference lacks.
    """

    data: str
    queries: int
    pairs: int
    truncated: int
    empty: int
    missing: int
    extra: int
    first_stage: dict[str, Interval]
    judged: tuple[Judged, ...]
    passed: bool


def validate(
    folder: ModelFolder,
    variants: Sequence[str],
    candidates: Candidates,
    gates: Sequence[Gate] = GATES,
    threads: int | None = None,
    device: str = "cpu",
) -> Validation:
    """Score `candidates` with the reference and each variant, compare, and hold the gates against it.

    The reference is the FP32 torch model; on the first pairs its scores are held against
    sentence-transformers' own. Models of several labels are judged by the label with the largest
    logit. Raises BadInput where a variant is missing, GateFailed where the reference is not to be trusted.
    """
    for variant in (REFERENCE, *variants):
        check_variant(folder.variant(variant), device)
    pairs = candidates.pairs
    threads = threads or cores()
    log.info("validate: the reference scores %d pairs", len(pairs))
    expected = open_scorer(folder, REFERENCE, threads=threads, device=device).score(pairs)
    itself = ReferenceScorer(folder, folder.variant(REFERENCE), threads, REFERENCE_BATCH, device)
    noise = _largest_difference(expected, _again(itself.score, pairs))
    if not noise <= max(SAME * float(np.std(expected)), FLOAT_NOISE):
        raise GateFailed(f"{folder.path}: torch and sentence-transformers differ by {noise:.2g}; no reference to trust")
    judged = [judge(candidates, expected, expected, gates, name=REFERENCE, noise=noise, floor=noise)]
    for variant in dict.fromkeys(variants):
        if variant == REFERENCE:
            continue
        log.info("validate: %s", variant)
        scorer = open_scorer(folder, variant, threads=threads, device=device)
        scores = scorer.logits(pairs)
        again = _again(scorer.with_plan(replace(scorer.plan, tokens=2 * scorer.plan.tokens)).logits, pairs)
        judged.append(
            judge(
                candidates,
                expected,
                scores,
                gates,
                name=variant,
                noise=_largest_difference(scores, again),
                floor=noise,
                unsteady=not_repeatable(candidates, expected, scores, again, gates),
            )
        )
    return Validation(
        data=candidates.name,
        queries=len(candidates.groups()),
        pairs=len(pairs),
        truncated=Encoder(folder).encode(pairs).truncated,
        empty=sum(not text.strip() for _, text in pairs),
        missing=0,
        extra=0,
        first_stage=_quality(candidates, first_stage_scores(candidates)),
        judged=tuple(judged),
        passed=all(each.verdict == PASSED for each in judged),
    )


def validate_runs(reference: Path, scores: Path, qrels: Path | None, gates: Sequence[Gate] = GATES) -> Validation:
    """Hold a TREC run, of any engine, against another one. Raises BadInput where a file is none.

    The documents are the reference's. A document that the run lacks comes last in it, tied with the others.
    """
    expected, got = read_run(reference), read_run(scores)
    rows = tuple(Row(query_id, "", doc_id, "") for query_id, ranking in expected.items() for doc_id in ranking)
    judgements = {q: j for q, j in read_qrels(qrels).items() if q in expected} if qrels else {}
    if qrels and not judgements:
        raise BadInput(f"{qrels}: judges none of the {len(expected)} queries of {reference}")
    candidates = Candidates(reference.name, rows, judgements)
    first = np.array([expected[row.query_id][row.doc_id] for row in rows])
    second = np.array([got.get(row.query_id, {}).get(row.doc_id, -np.inf) for row in rows])
    judged = (
        judge(candidates, first, first, gates, name=reference.name),
        judge(candidates, first, second, gates, name=scores.name),
    )
    common = sum(row.doc_id in got.get(row.query_id, {}) for row in rows)
    return Validation(
        data=candidates.name,
        queries=len(expected),
        pairs=len(rows),
        truncated=0,
        empty=0,
        missing=len(rows) - common,
        extra=sum(map(len, got.values())) - common,
        first_stage={},
        judged=judged,
        passed=all(each.verdict == PASSED for each in judged),
    )


def _quality(candidates: Candidates, scores: Scores) -> dict[str, Interval]:
    return {name: interval(values) for name, values in quality_by_query(candidates, scores).items()}


def _again(score: Callable[[Sequence[Pair]], Scores], pairs: Sequence[Pair]) -> Scores:
    """The scores of the first pairs again, in other batches and another order."""
    few = pairs[:NOISE_PAIRS]
    parts = [(part, score(few[part])) for part in (slice(0, None, 2), slice(1, None, 2)) if few[part]]
    again = np.empty((len(few), *parts[0][1].shape[1:]), np.float32)
    for part, scores in parts:
        again[part] = scores
    return again


def _largest_difference(scores: Scores, again: Scores) -> float:
    return float(np.abs(scores[: len(again)].astype(np.float64) - again).max())
