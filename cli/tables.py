"""The tables of results, as the commands and the main job print them."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from xopt.cli.output import Output

if TYPE_CHECKING:
    from xopt.optimize.judge.statistics import Interval
    from xopt.optimize.judge.verdict import Judged
    from xopt.optimize.judge.worst_queries import WorstQuery
    from xopt.optimize.pipeline import Recommendation
    from xopt.optimize.steer import Steered
    from xopt.optimize.tune import Tuning
    from xopt.optimize.validate import Validation
    from xopt.runtime.bench.bench import Bench, Case, Measured
    from xopt.runtime.bench.explain import Explained

__all__ = [
    "print_advice",
    "print_bench",
    "print_explained",
    "print_rival",
    "print_steering",
    "print_tuning",
    "print_validation",
]

MIB = 1 << 20
TEXT_WIDTH = 60
ADVISED = ("tau", "top10", "dcg10_loss", "labels")
MEASURES = {  # of a validation, as the table heads them; the JSON has all
    "tau": "tau-b",
    "rbo": "RBO",
    "top1": "top-1",
    "top10": "top-10",
    "inversions": "inversions",
    "dcg10_loss": "DCG loss",
    "ndcg10": "nDCG@10",
    "ndcg10_drop": "its loss",
    "labels": "same label",
}


def print_tuning(out: Output, tuning: Tuning) -> None:
    """All plans tried for a variant, best first."""
    rows = [
        [
            f"{t.plan.callers} x {t.plan.threads}",
            str(t.plan.tokens),
            f"{t.pairs_per_s[-1]:.1f}",
            str(len(t.pairs_per_s)),
        ]
        for t in tuning.trials
    ]
    title = (
        f"{tuning.variant} on {tuning.machine}: {len(rows)} plans by successive halving, best first"
    )
    out.table(title, ["callers x threads", "tokens a forward", "pairs/s", "rungs"], rows)


def print_advice(out: Output, advice: Recommendation, validation: Validation) -> None:
    """What to run, how much faster it is, what it costs in ranking, and what was left undecided
    and why.
    """
    judged = {each.name: each for each in validation.judged}
    chosen = judged[advice.variant]
    cost = ", ".join(
        f"{MEASURES[name]} {_interval(chosen.measures[name])}"
        for name in ADVISED
        if name in chosen.measures
    )
    out.line(
        f"Recommended: {advice.variant}, {advice.ratio:.1f} times torch-fp32/default; {cost}; {chosen.queries} queries."
    )
    out.line(f"    from xopt.runtime import open_scorer; {advice.python}")
    for variant, ratio in advice.undecided.items():
        reasons = "; ".join(_reasons(judged[variant])) or "undecided"
        out.line(f"{variant} is faster, {ratio:.1f} times. {reasons}")
    out.line("")


def print_validation(out: Output, validation: Validation) -> None:
    """Agreement, quality, noise and gates of each variant, then the query on which each one lost
    most.
    """
    graded = bool(validation.first_stage)
    measures = {
        name: column
        for name, column in MEASURES.items()
        if any(name in judged.measures for judged in validation.judged)
    }
    rows = []
    for judged in validation.judged:
        figures = [
            _interval(judged.measures[n]).replace(" [", "\n[") if n in judged.measures else ""
            for n in measures
        ]
        noise = "" if judged.noise is None else f"{judged.noise:.1g}"
        difference = f"{judged.mean_difference:.2g} / {judged.max_difference:.2g}"
        rows.append([judged.name, str(judged.queries), *figures, difference, noise, judged.verdict])
    if graded:
        first = validation.first_stage
        figures = [
            _interval(first[name]).replace(" [", "\n[") if name in first else ""
            for name in measures
        ]
        rows.append(["first stage", str(validation.queries), *figures, "", "", ""])
    title = f"agreement with the reference on {validation.data}: {validation.queries} of {validation.all_queries} queries"
    title += f", {validation.pairs} pairs ({validation.truncated} cut to the model's length, {validation.empty} empty texts)"
    if validation.prepared_with:
        title += f"; {validation.prepared_with} more calibrated or tuned and are left out"
    if validation.reference_difference:
        title += f"; scored by {validation.reference}, {validation.reference_difference:.1g} from sentence-transformers"
    if validation.out_of_time:
        title += "; the minutes ended before all was decided"
    if validation.missing or validation.extra:
        title += f"; the run lacks {validation.missing} of them and has {validation.extra} others"
    out.table(
        title,
        ["variant", "queries", *measures.values(), "mean / max |Δ|", "noise", "verdict"],
        rows,
    )
    for judged in validation.judged:
        for reason in _reasons(judged):
            out.line(f"{judged.name}: {reason}")
    for judged in validation.judged:
        if judged.losses:
            _print_worst(out, judged.name, judged.losses[0])


def _interval(found: Interval) -> str:
    if not found.queries:
        return ""
    spread = f" [{found.low:.3f}, {found.high:.3f}]" if found.low < found.high else ""
    return f"{found.mean:.3f}{spread}"


def _reasons(judged: Judged) -> list[str]:
    """Why a variant has not passed, in words."""
    reasons = [f"FAIL: its scores are {judged.broken}"] if judged.broken else []
    if not judged.gates and judged.verdict == "undecided":
        reasons.append(
            "undecided: no gate can be measured on this data, a candidate or a few for each query"
        )
    for result in judged.gates:
        side = "at most" if result.gate.at_most else "at least"
        if not result.interval.queries and result.verdict == "undecided":
            bound = f"{side} {result.gate.bound:g}"
            reasons.append(
                f"undecided: {result.gate.measure}, asked {bound}, cannot be measured on these queries"
            )
            continue
        asked = f"{result.gate.measure} {_interval(result.interval)}, asked {side} {result.gate.bound:g}"
        if result.verdict == "fail":
            reasons.append(f"FAIL: {asked}")
        elif result.verdict == "undecided":
            enough = f"; about {result.queries_needed:,} would do" if result.queries_needed else ""
            word = "not shown, and not held against it" if result.gate.veto else "undecided"
            reasons.append(
                f"{word}: {asked}; {result.interval.queries} queries are too few{enough}"
            )
    return reasons


def _print_worst(out: Output, name: str, worst: WorstQuery) -> None:
    rows = [
        [
            str(document.reference_rank),
            str(document.rank),
            f"{document.reference_score:.3f}",
            f"{document.score:.3f}" if math.isfinite(document.score) else "",
            "" if document.grade is None else str(document.grade),
            document.doc_id,
            textwrap.shorten(document.text, TEXT_WIDTH, placeholder=" …"),
        ]
        for document in worst.documents
    ]
    lost = f"nDCG@10 {-worst.ndcg10_drop:+.3f}, " if worst.ndcg10_drop else ""
    query = textwrap.shorten(worst.query, TEXT_WIDTH, placeholder=" …")
    title = f"where {name} differs most: query {worst.query_id} ({lost}rank-biased overlap {worst.rbo:.3f}) {query}"
    columns = [
        "rank in the reference",
        "rank",
        "score in the reference",
        "score",
        "grade",
        "document",
        "text",
    ]
    out.table(title, columns, rows, left=("document", "text"))


def print_steering(out: Output, steered: Steered) -> None:
    """Speed against agreement of each recipe that was tried, and what each product does to the
    scores alone.
    """
    rows = []
    for step in steered.steps:
        gates = [_interval(result.interval) for result in step.judged.gates]
        chosen = "chosen" if step.recipe == steered.recipe else ""
        floats = str(len(step.recipe.floats))
        rows.append(
            [
                f"{step.recipe.smoothing:g}",
                floats,
                *gates,
                f"{step.speed:.2f} x",
                step.judged.verdict,
                chosen,
            ]
        )
    measures = [result.gate.measure for result in steered.steps[0].judged.gates]
    out.table(
        "INT8 steered by agreement",
        ["smoothing", "in float", *measures, "of onnx-fp32", "verdict", ""],
        rows,
    )
    if steered.harms:
        names = _short([harm.products for harm in steered.harms])
        alone = [
            [n, f"{h.spread:.4f}", f"{100 * h.work:.1f} %"]
            for n, h in zip(names, steered.harms, strict=True)
        ]
        title = "each product alone in INT8, the first to stay in float first; spread: standard deviation of the change"
        out.table(title, ["products that read the same tensor", "spread", "work"], alone)


def _short(groups: Sequence[tuple[str, ...]]) -> list[str]:
    """Names of graph nodes without what all of them share: `layer.0/attention/self/query, key,
    value`.
    """
    paths = [[PurePosixPath(name.strip("/")) for name in group] for group in groups]
    shared = len(
        PurePosixPath(os.path.commonpath([path for group in paths for path in group])).parts
    )
    parts = [[path.parts[shared:] for path in group] for group in paths]
    # the operator's own name comes last
    kept = [[p[:-1] if len(p) > 1 else p for p in group] for group in parts]
    return ["/".join(group[0]) + "".join(f", {p[-1]}" for p in group[1:]) for group in kept]


def print_bench(out: Output, bench: Bench) -> None:
    """Speed, latency, loading, memory, CPU and agreement of each case, as a ratio to the
    baseline.
    """
    rows = []
    for m in bench.measured:
        cpu = f"{100 * m.mean_cores / bench.cores:.0f} / {100 * m.peak_cores / bench.cores:.0f} %"
        shares = [m.agreement.tau, m.agreement.top10] if m.agreement else []
        agreed = ["" if math.isnan(share) else f"{share:.3f}" for share in shares] or ["", ""]
        rows.append(
            [
                str(m.case),
                f"{m.ratio:.2f} x",
                f"{m.pairs_per_s:.1f}",
                f"{m.tokens_per_s:,.0f}",
                f"{1000 * m.p50_s:,.0f} / {1000 * m.p95_s:,.0f}",
                f"{m.load_s:.1f}",
                f"{m.peak_bytes / MIB:,.0f}",
                cpu,
                f"{m.mean_cores:.2f}",
                f"{100 * m.root_mean_cores / bench.cores:.1f} %",
                *agreed,
            ]
        )
    columns = [
        "variant/strategy",
        "speed",
        "pairs/s",
        "tokens/s",
        "call p50 / p95 ms",
        "load s",
        "peak MiB",
    ]
    columns += ["CPU mean / peak", "cores", "CPU seen in parent", "tau-b", "top-10"]
    title = f"Daft batch UDF on {bench.device}: {bench.pairs} pairs of {bench.data}, mean {bench.tokens / bench.pairs:.0f}"
    title += (
        f" tokens, {bench.threads} threads each, {len(bench.measured[0].rounds)} interleaved rounds"
    )
    out.table(title, columns, rows)
    rounds = len(bench.measured[0].rounds)
    once = [str(m.case) for m in bench.measured if len(m.rounds) < rounds]
    if once:
        out.line(f"In the first round alone, and not tuned: {', '.join(once)}")
        out.line("")


def print_rival(out: Output, rival: Measured, ours: Measured | None) -> None:
    """The fastest of what a user would run instead, and how much faster what agrees no less is."""
    agreed = f" with tau-b {rival.agreement.tau:.3f}" if rival.agreement else ""
    out.line(f"The fastest peer is {rival.case}, {rival.ratio:.2f} x{agreed}.")
    if ours and ours.agreement:
        times = ours.pairs_per_s / rival.pairs_per_s
        out.line(
            f"{ours.case} is {times:.2f} times as fast as it, with tau-b {ours.agreement.tau:.3f}."
        )
    out.line("")


def _print_gpu_stages(out: Output, bench: Bench) -> None:
    rows = []
    for m in bench.measured:
        if m.case.strategy == "planned":
            median = sorted(m.rounds, key=lambda r: r.wall_s)[len(m.rounds) // 2]
            s = median.stages
            idle = max(0.0, 1 - (s.copy_s + s.forward_s) / median.wall_s)
            seconds = [
                f"{value:.2f}" for value in (median.wall_s, s.encode_s, s.copy_s, s.forward_s)
            ]
            rows.append([str(m.case), *seconds, f"{idle:.0%}"])
    title = "where the time went: tokenising runs on the host beside the GPU, copies and forwards by the GPU's own clock"
    out.table(
        title,
        ["variant/strategy", "wall s", "tokenising s", "copies s", "forwards s", "GPU idle"],
        rows,
    )


def _print_kinds(out: Output, explained: Sequence[tuple[Case, Explained]]) -> None:
    """The shares of a forward's time by kind of operation."""
    if not explained:
        return
    kinds = list(dict.fromkeys(kind for _, each in explained for kind in each.kinds))
    rows = []
    for case, each in explained:
        reached = "" if each.products_of_ceiling is None else f"{each.products_of_ceiling:.0%}"
        rows.append([str(case), *(f"{each.kinds.get(kind, 0.0):.0%}" for kind in kinds), reached])
    title = "a forward of one caller by kind of operation, as the runtimes' profilers tell; what a runtime joins to a "
    title += "product counts as one"
    out.table(title, ["variant/strategy", *kinds, "products, of ceiling"], rows)


def print_explained(out: Output, bench: Bench) -> None:
    """Where each case's time went, how near its forwards come to the machine's ceilings, and what
    to change.
    """
    from xopt.runtime.bench.explain import STAGES

    c, rows = bench.ceilings, []
    explained = [(m.case, m.explained) for m in bench.measured if m.explained]
    if c is None:
        _print_gpu_stages(out, bench)
        return
    for case, each in explained:
        split, found = each.split, each.bottleneck
        total = split.total_s
        shares = [getattr(split, stage) / total for stage in STAGES]
        achieved = ["", ""]
        if each.gflops is not None and each.of_ceiling is not None:
            achieved = [f"{each.gflops:.0f}", f"{each.of_ceiling:.0%}"]
        rows.append(
            [
                str(case),
                f"{total:.1f}",
                *(f"{share:.0%}" for share in shares),
                *achieved,
                found.name,
            ]
        )
    bf16 = f", BF16 {c.bf16_gflops:.0f}" if c.bf16_gflops else ""
    title = f"where the time went; ceilings of {c.threads} threads: FP32 {c.fp32_gflops:.0f} GFLOP/s{bf16}, "
    title += f"INT8 {c.int8_gflops:.0f} GOP/s, memory {c.memory_gbs:.0f} GB/s"
    out.table(
        title,
        ["variant/strategy", "s", *STAGES.values(), "GFLOP/s", "of ceiling", "held back by"],
        rows,
    )
    _print_kinds(out, [(case, each) for case, each in explained if each.kinds])
    for case, each in explained:
        found = each.bottleneck
        gain = f" Expected: up to {found.gain:.1f} times the speed." if found.gain > 1 else ""
        others = ", ".join(f"{other.name} {other.gain:.1f} x" for other in each.findings[1:])
        out.line(f"{case}: {found.advice}{gain}{' Also: ' + others + '.' if others else ''}")
