"""Validate: does a variant still rank as the reference does? Agreement, quality, noise and gates."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xopt.runtime.agreement import Agreement, agreement, first_stage_scores, quality
from xopt.runtime.candidates import Candidates
from xopt.runtime.encode import Encoder, Pair
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.reference import REFERENCE, ReferenceScorer
from xopt.runtime.scorer import open_scorer

__all__ = ["GATES", "Gate", "GateResult", "Validated", "Validation", "validate"]

log = logging.getLogger(__name__)

NOISE_QUERIES = 10  # the noise floor is taken on so many queries
REFERENCE_BATCH = 8  # scores do not depend on it, and 8 is the fastest on small machines

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Gate:
    """A bound on a measure: at least `bound`, or at most `bound` where `at_most`."""

    measure: str
    bound: float
    at_most: bool = False


GATES = (
    Gate("tau", 0.80),
    Gate("top10", 0.85),
    Gate("ndcg10_drop", 0.01, at_most=True),
)


@dataclass(frozen=True)
class GateResult:
    """A gate and the value that it was held against."""

    gate: Gate
    value: float
    passed: bool


@dataclass(frozen=True)
class Validated:
    """One variant against the reference. `noise` is the variant against itself, in other batches and another order."""

    variant: str
    agreement: Agreement
    quality: dict[str, float]
    noise: Agreement
    gates: tuple[GateResult, ...]
    passed: bool


@dataclass(frozen=True)
class Validation:
    """All variants on the same candidates. Quality is empty where there are no qrels."""

    data: str
    queries: int
    pairs: int
    truncated: int
    empty: int
    first_stage: dict[str, float]
    variants: tuple[Validated, ...]
    passed: bool


def validate(
    folder: ModelFolder,
    variants: Sequence[str],
    candidates: Candidates,
    gates: Sequence[Gate] = GATES,
    threads: int | None = None,
) -> Validation:
    """Score `candidates` with the reference and each variant, compare, and hold the gates against it.

    The reference is the FP32 torch model as sentence-transformers runs it. Raises BadInput where a
    variant is missing or the model has several labels, which do not rank.
    """
    if folder.manifest.labels != 1:
        raise BadInput(
            f"{folder.path}: {folder.manifest.labels} labels; xopt validates rankings, by models of one label"
        )
    for variant in variants:
        folder.variant(variant)
    pairs, few = candidates.pairs, candidates.head(list(candidates.groups().values())[:NOISE_QUERIES][-1].stop)
    threads = threads or cores()
    reference = ReferenceScorer(folder, folder.variant(REFERENCE), threads, REFERENCE_BATCH)
    log.info("validate: the reference scores %d pairs", len(pairs))
    expected = reference.score(pairs)
    expected_quality = quality(candidates, expected)
    noise = agreement(few, expected[: len(few.rows)], _shuffled(reference.score, few.pairs))
    results = [
        _judge(REFERENCE, agreement(candidates, expected, expected), expected_quality, expected_quality, noise, gates)
    ]
    for variant in dict.fromkeys(variants):
        if variant == REFERENCE:
            continue
        log.info("validate: %s", variant)
        scorer = open_scorer(folder.path, variant, threads=threads)
        scores = scorer.score(pairs)
        other = scorer.with_plan(replace(scorer.plan, tokens=2 * scorer.plan.tokens))
        noise = agreement(few, scores[: len(few.rows)], _shuffled(other.score, few.pairs))
        agreed = agreement(candidates, expected, scores)
        results.append(_judge(variant, agreed, quality(candidates, scores), expected_quality, noise, gates))
    return Validation(
        data=candidates.name,
        queries=len(candidates.groups()),
        pairs=len(pairs),
        truncated=Encoder(folder).encode(pairs).truncated,
        empty=sum(not text.strip() for _, text in pairs),
        first_stage=quality(candidates, first_stage_scores(candidates)),
        variants=tuple(results),
        passed=all(result.passed for result in results),
    )


def _shuffled(score: Callable[[Sequence[Pair]], Scores], pairs: Sequence[Pair]) -> Scores:
    """Scores of every other pair first, so that each pair meets other company, in the order given."""
    order = np.concatenate([np.arange(0, len(pairs), 2), np.arange(1, len(pairs), 2)])
    half = len(pairs[::2])
    scores = np.empty(len(pairs), np.float32)
    scores[order[:half]] = score([pairs[i] for i in order[:half]])
    if half < len(pairs):
        scores[order[half:]] = score([pairs[i] for i in order[half:]])
    return scores


def _judge(
    variant: str,
    agreed: Agreement,
    measured: dict[str, float],
    expected: dict[str, float],
    noise: Agreement,
    gates: Sequence[Gate],
) -> Validated:
    values = {"tau": agreed.tau, "spearman": agreed.spearman, "top1": agreed.top1, "top10": agreed.top10}
    if measured:
        values["ndcg10_drop"] = expected["ndcg10"] - measured["ndcg10"]
    results = tuple(_hold(gate, values[gate.measure]) for gate in gates if gate.measure in values)
    return Validated(variant, agreed, measured, noise, results, all(result.passed for result in results))


def _hold(gate: Gate, value: float) -> GateResult:
    return GateResult(gate, value, bool(value <= gate.bound if gate.at_most else value >= gate.bound))
