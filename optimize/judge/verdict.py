"""Verdicts on scores: do they pass their gates against the reference's scores?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xopt.optimize.judge.statistics import (
    ALPHA,
    FAILED,
    PASSED,
    ROUNDING,
    UNDECIDED,
    Gate,
    GateResult,
    Interval,
    Scores,
    Values,
    hold,
    interval,
    worst,
)
from xopt.optimize.judge.worst_queries import WorstQuery, worst_queries
from xopt.runtime.data.agreement import agreement_by_query, broken, differences
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.errors import BadInput

__all__ = ["GATES", "Judged", "gates_with", "judge", "not_repeatable", "rounding_of"]

# Scores are the same where they differ by no more than this share of their standard deviation.
ROUNDING_SHARE = 1e-4
ROUNDING_LOGITS = 1e-5  # for a single pair, whose logits have no standard deviation
SWAP = 1 - 1 / np.log2(3)  # nDCG lost where the only relevant document moves from rank 1 to 2

GATES = (
    Gate("tau", 0.93),  # good INT8 has 0.95 and more, onnxruntime's dynamic INT8 0.84 to 0.89
    Gate("top10", 0.90),
    Gate("dcg10_loss", 0.01, at_most=True),
    # Labels are few and noisy: it takes thousands of queries to show so small a loss.
    Gate("ndcg10_drop", 0.005, at_most=True, unseen=SWAP, veto=True),
    Gate("labels", 0.98),
)
NOT_MEASURED = np.array([np.nan])


@dataclass(frozen=True)
class Judged:
    """A variant or a run, compared with the reference on the first `queries`.

    `measures` has those of `Agreement`, and with qrels those of `quality_by_query` and
    ndcg10_drop. Models of several labels have only labels. `noise` is the largest difference of
    logits in other batches. `broken` says why scores give no ranking. `losses` are the queries
    that lost most.
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
    """Return the default gates with other bounds for some measures, which then have to pass.

    Raises BadInput where a measure takes qrels (`graded`), or more or fewer `labels`, which are
    None while unknown.
    """
    gates = {gate.measure: gate for gate in GATES}
    for measure, bound in bounds.items():
        if math.isnan(bound):
            raise BadInput(f"the gate on {measure}: its bound is NaN; give a number")
        if measure == "ndcg10_drop" and not graded:
            raise BadInput(
                f"the gate on {measure}: there are no qrels, so no nDCG; "
                "give data with relevance, or `qrels=`"
            )
        if labels is not None and (measure == "labels") != (labels > 1):
            plural = "s" if labels > 1 else ""
            raise BadInput(
                f"the gate on {measure}: a model with {labels} label{plural} has no such measure"
            )
        gates[measure] = replace(gates[measure], bound=bound, veto=False, asked=True)
    return tuple(gates.values())


def judge(
    candidates: Candidates,
    expected: Scores,
    scores: Scores,
    gates: Sequence[Gate] = GATES,
    *,
    name: str,
    noise: float | None = None,
    reference_noise: float = 0.0,
    instability: str = "",
    level: float = ALPHA,
    earlier: Sequence[GateResult] = (),
    logits: bool = True,
) -> Judged:
    """Compare scores, float32[pairs] or [pairs, labels], with expected ones, and check gates.

    `instability` comes from `not_repeatable`. A repeated look has its own `level`, and keeps what
    `earlier` ones decided. Without `logits` there is no dcg10_loss.
    """
    if expected.ndim > 1:
        values = {"labels": _label_agreement(candidates, expected, scores)}
    else:
        values = _measured(candidates, expected, scores, reference_noise, logits)
    reason = _broken(candidates, expected, scores) or instability
    difference = differences(expected, scores)
    same = not reason and _is_rounding(difference["max_difference"], expected, scores)
    depth = len(candidates.rows) / len(candidates.groups())
    results = _gate_results(_with_steps(gates, depth), values, same, level, earlier)
    has_losses = not same and expected.ndim == 1
    return Judged(
        name=name,
        verdict=_verdict(results, same, reason),
        queries=len(candidates.groups()),
        measures=_intervals(values, results, level),
        **difference,
        noise=noise,
        broken=reason,
        gates=tuple(results),
        losses=worst_queries(candidates, expected, scores, values) if has_losses else (),
    )


def _all_scored(scores: Scores) -> bool:
    """Return whether each pair has a score; a run may lack documents."""
    return bool(np.isfinite(scores).all())


def _is_rounding(difference: float, expected: Scores, scores: Scores) -> bool:
    """Return whether scores differ by rounding alone."""
    return _all_scored(scores) and difference <= ROUNDING_SHARE * float(np.std(expected))


def _broken(candidates: Candidates, expected: Scores, scores: Scores) -> str:
    """Return why scores can rank nothing, or nothing."""
    if expected.ndim == 1:
        return broken(candidates, expected, scores)
    return "" if _all_scored(scores) else "not finite"


def _intervals(
    values: dict[str, Values], results: Sequence[GateResult], level: float
) -> dict[str, Interval]:
    """Return the interval of each measure: that of its gate, where it has one."""
    measures = {name: interval(by_query, level=level) for name, by_query in values.items()}
    for result in results:
        if result.gate.measure in measures:
            measures[result.gate.measure] = result.interval
    return measures


def _gate_results(
    gates: Sequence[Gate],
    values: dict[str, Values],
    same: bool,
    level: float,
    earlier: Sequence[GateResult],
) -> list[GateResult]:
    """Check gates on their measures' values; what `earlier` looks decided stays."""
    decided = {each.gate.measure: each for each in earlier if each.verdict != UNDECIDED}
    results = []
    for gate in gates:
        by_query = values.get(gate.measure, NOT_MEASURED)
        if gate.measure in decided:
            results.append(decided[gate.measure])
        elif gate.asked or np.isfinite(by_query).any():
            results.append(hold(gate, by_query, same, level))
    return results


def _measured(
    candidates: Candidates, expected: Scores, scores: Scores, noise: float, logits: bool
) -> dict[str, Values]:
    values = agreement_by_query(candidates, expected, scores, noise=2 * noise)
    if not logits:
        del values["dcg10_loss"]
    quality = quality_by_query(candidates, scores)
    if quality:
        values |= quality
        reference = quality_by_query(candidates, expected)
        values["ndcg10_drop"] = reference["ndcg10"] - quality["ndcg10"]
    return values


def _with_steps(gates: Sequence[Gate], depth: float) -> list[Gate]:
    """Set `unseen` to the least that one pair, or a swap of two, can move a query's value.

    With one or two candidates a query (`depth`) this is as much as the measure itself.
    """
    swap = 4 / (depth * (depth - 1)) if depth >= 2 else 2.0
    steps = {"labels": 1 / depth, "tau": swap}
    changed = []
    for gate in gates:
        step = steps.get(gate.measure, 0.0)
        changed.append(replace(gate, unseen=max(gate.unseen, step)))
    return changed


def _verdict(results: Sequence[GateResult], same: bool, reason: str) -> str:
    if reason:
        return FAILED
    # an undecided veto does not count
    verdicts = [each.verdict for each in results if not each.gate.veto or each.verdict == FAILED]
    if not verdicts:
        return PASSED if same else UNDECIDED
    return worst(verdicts)


def rounding_of(logits: Scores) -> float:
    """Return the largest difference from these logits that is a rounding error."""
    return max(ROUNDING_SHARE * float(np.std(logits)), ROUNDING_LOGITS)


def not_repeatable(
    candidates: Candidates, expected: Scores, scores: Scores, again: Scores, gates: Sequence[Gate]
) -> str:
    """Return why scores depend on a pair's batch, or an empty text where they do not.

    `again` has the first pairs' scores in other batches. They may differ by the reference's
    standard deviation, and must agree with `scores` as the gates ask them to agree with it.
    """
    first = scores[: len(again)]
    if not np.isfinite(again).all():
        return "not finite in other batches"
    noise = float(np.abs(first - again).max())
    spread = float(np.std(expected))
    if noise > max(spread, ROUNDING_LOGITS):
        difference = f"they differ by up to {noise:.2g} (all logits spread by {spread:.2g})"
        return f"not repeatable: in other batches {difference}"
    part = candidates.head(len(again))
    if expected.ndim > 1:
        measure = "labels"
        values = _label_agreement(part, first, again)
    else:
        measure = "tau"
        values = agreement_by_query(part, first, again)["tau"]
    if not np.isfinite(values).any():
        return ""
    mean = np.nanmean(values)
    for gate in gates:
        if gate.measure == measure and mean < gate.bound - ROUNDING:
            agreement = f"{measure} with themselves is {mean:.3f}, under {gate.bound:g}"
            return f"not repeatable: in other batches {agreement}"
    return ""


def _label_agreement(candidates: Candidates, expected: Scores, scores: Scores) -> Values:
    """Return each query's share of pairs with the same label."""
    finite = np.where(np.isnan(scores), -np.inf, scores)
    same = expected.argmax(axis=1) == finite.argmax(axis=1)
    return np.array([same[rows].mean() for rows in candidates.groups().values()])
