"""Verdicts: scores against the reference's scores, by the gates that were asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.judge.statistics import (
    ALPHA,
    FAILED,
    PASSED,
    ROUNDING,
    UNDECIDED,
    Gate,
    GateResult,
    Interval,
    hold,
    interval,
)
from xopt.optimize.judge.worst_queries import WorstQuery, worst_queries
from xopt.runtime.data.agreement import agreement_by_query, broken, differences
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.errors import BadInput

__all__ = ["GATES", "SAME", "Judged", "gates_with", "judge", "not_repeatable"]

# of logits; what data with a single pair, whose logits have no spread, is held to
FLOAT_NOISE = 1e-5
# scores that differ by so little of the reference's standard deviation differ by rounding alone
SAME = 1e-4
# of nDCG: what the only relevant document loses between the first rank and the second
SWAP = 1 - 1 / np.log2(3)

Scores = NDArray[np.floating[Any]]

GATES = (
    Gate("tau", 0.93),  # INT8 that works has 0.95 and more, onnxruntime's own 0.84 to 0.89
    Gate("top10", 0.90),
    Gate("dcg10_loss", 0.01, at_most=True),
    # Labels are few and noisy: to show so small a loss takes thousands of queries. See
    # docs/validation.md.
    Gate("ndcg10_drop", 0.005, at_most=True, unseen=SWAP, veto=True),
    Gate("labels", 0.98),
)
NOT_MEASURED = np.array([np.nan])


@dataclass(frozen=True)
class Judged:
    """One variant, or run, against the reference.

    `measures` by name, with intervals: tau, spearman, rbo, top1 to top10, inversions and
    dcg10_loss; ndcg10, mrr10, recall10 and ndcg10_drop where there are qrels; labels alone for
    several labels. `noise` is the largest difference of logits of the variant to itself in other
    batches and another order, None for runs. `broken` says why the scores rank nothing, if they
    do not; `queries` how many the verdict took.
    """

    name: str
    verdict: str
    queries: int
    measures: dict[str, Interval]
    mean_difference: float
    max_difference: float
    noise: float | None
    broken: str
    gates: tuple[GateResult, ...]
    losses: tuple[WorstQuery, ...]


def gates_with(bounds: dict[str, float], graded: bool, labels: int | None = 1) -> tuple[Gate, ...]:
    """The default gates, with other bounds for some measures; a gate whose bound is given has to
    pass.

    Raises BadInput where a bound is given for what cannot be measured: there are no qrels
    (`graded`), or the model has one label or several; `labels` is None where that is not known
    yet.
    """
    for measure, bound in bounds.items():
        if math.isnan(bound):
            raise BadInput(f"the gate on {measure}: its bound is NaN, which nothing meets")
        if measure == "ndcg10_drop" and not graded:
            raise BadInput(
                "--max-ndcg-drop: there are no qrels, so no nDCG; give data with relevance, or --qrels"
            )
        if labels is not None and (measure == "labels") != (labels > 1):
            raise BadInput(
                f"the gate on {measure}: a model with {labels} label{'s' * (labels > 1)} has no such measure"
            )
    return tuple(
        replace(gate, bound=bounds[gate.measure], veto=False, asked=True)
        if gate.measure in bounds
        else gate
        for gate in GATES
    )


def judge(
    candidates: Candidates,
    expected: Scores,
    scores: Scores,
    gates: Sequence[Gate] = GATES,
    *,
    name: str,
    noise: float | None = None,
    floor: float = 0.0,
    unsteady: str = "",
    level: float = ALPHA,
    settled: Sequence[GateResult] = (),
    logits: bool = True,
) -> Judged:
    """Hold scores against the expected ones.

    `floor` is the noise of the latter, `unsteady` why scores depend on their batch (see
    `not_repeatable`). Where this is one of several looks, `level` is its own and `settled` the
    gates that an earlier one has decided. Without `logits`, for runs of any engine, scores say
    nothing of relevance, and the loss of DCG by them is left out.
    """
    if expected.ndim > 1:
        values = {"labels": _same_labels(candidates, expected, scores)}
        why = "" if np.isfinite(scores).all() else "not finite"
    else:
        values = agreement_by_query(candidates, expected, scores, noise=2 * floor)
        if not logits:
            del values["dcg10_loss"]
        measured = quality_by_query(candidates, scores)
        values |= measured
        if measured:
            values["ndcg10_drop"] = (
                quality_by_query(candidates, expected)["ndcg10"] - measured["ndcg10"]
            )
        why = broken(candidates, expected, scores)
    why = why or unsteady
    difference = differences(expected, scores)
    whole = bool(np.isfinite(scores).all())  # a run may lack documents
    same = whole and difference["max_difference"] <= SAME * float(np.std(expected)) and not why
    before = {result.gate.measure: result for result in settled}
    results = tuple(
        before.get(gate.measure) or hold(gate, values.get(gate.measure, NOT_MEASURED), same, level)
        for gate in _with_steps(gates, len(candidates.rows) / len(candidates.groups()))
        if gate.asked or np.isfinite(values.get(gate.measure, NOT_MEASURED)).any()
    )
    intervals = {result.gate.measure: result.interval for result in results}
    return Judged(
        name=name,
        verdict=_verdict(results, same, why),
        queries=len(candidates.groups()),
        measures={
            measure: intervals.get(measure) or interval(by_query, level=level)
            for measure, by_query in values.items()
        },
        **difference,
        noise=noise,
        broken=why,
        gates=results,
        losses=()
        if same or expected.ndim > 1
        else worst_queries(candidates, expected, scores, values),
    )


def not_repeatable(
    candidates: Candidates, expected: Scores, scores: Scores, again: Scores, gates: Sequence[Gate]
) -> str:
    """Why scores depend on the batch that a pair is in; empty where they do not, by the first
    pairs scored `again`.

    These must be finite, no further apart than the reference's logits are spread, and agree with
    each other as well as the gate asks them to agree with the reference: what disagrees with
    itself cannot do that.
    """
    first = scores[: len(again)]
    if not np.isfinite(again).all():
        return "not finite in other batches"
    noise, spread = float(np.abs(first - again).max()), float(np.std(expected))
    if noise > max(spread, FLOAT_NOISE):
        return f"not repeatable: in other batches they differ by up to {noise:.2g} (all logits spread by {spread:.2g})"
    several = expected.ndim > 1
    measure = "labels" if several else "tau"
    few = candidates.head(len(again))
    itself = (
        _same_labels(few, first, again) if several else agreement_by_query(few, first, again)["tau"]
    )
    bound = next((gate.bound for gate in gates if gate.measure == measure), -np.inf)
    if np.isfinite(itself).any() and np.nanmean(itself) < bound - ROUNDING:
        return f"not repeatable: in other batches {measure} with themselves is {np.nanmean(itself):.3f}, under {bound:g}"
    return ""


def _with_steps(gates: Sequence[Gate], depth: float) -> list[Gate]:
    """Gates whose values move by steps of one pair, or of two documents that change places: that
    is what is unseen.

    Of lists of one or two these are as large as the measure itself, and of ten or more next to
    nothing.
    """
    steps = {"labels": 1 / depth, "tau": 4 / (depth * (depth - 1)) if depth >= 2 else 2.0}
    return [replace(gate, unseen=max(gate.unseen, steps.get(gate.measure, 0.0))) for gate in gates]


def _verdict(results: Sequence[GateResult], same: bool, why: str) -> str:
    if why or any(result.verdict == FAILED for result in results):
        return FAILED
    required = [result.verdict for result in results if not result.gate.veto] or [
        PASSED if same else UNDECIDED
    ]
    return UNDECIDED if UNDECIDED in required else PASSED


def _same_labels(candidates: Candidates, expected: Scores, scores: Scores) -> NDArray[np.float64]:
    same = expected.argmax(1) == np.where(np.isnan(scores), -np.inf, scores).argmax(1)
    return np.array([same[rows].mean() for rows in candidates.groups().values()])
