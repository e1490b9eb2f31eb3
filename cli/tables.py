"""The tables of results, as the commands and the main job print them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xopt.cli.output import Output

if TYPE_CHECKING:
    from xopt.optimize.tune import Tuning
    from xopt.optimize.validate import GateResult, Validation
    from xopt.runtime.bench import Bench

__all__ = ["print_bench", "print_tuning", "print_validation"]

MIB = 1 << 20


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
    title = f"{tuning.variant} on {tuning.machine}: {len(rows)} plans by successive halving, best first"
    out.table(title, ["callers x threads", "tokens a forward", "pairs/s", "rungs"], rows)


def print_validation(out: Output, validation: Validation) -> None:
    """Agreement, quality, noise and gates of each variant."""
    graded = bool(validation.first_stage)
    rows = []
    for result in validation.variants:
        a = result.agreement
        quality = [f"{result.quality['ndcg10']:.4f}", f"{result.quality['mrr10']:.4f}"] if graded else []
        noise = f"{result.noise.max_difference:.1g} / {result.noise.tau:.3f}"
        verdict = "pass" if result.passed else "FAIL: " + ", ".join(_gate(g) for g in result.gates if not g.passed)
        figures = [f"{v:.3f}" for v in (a.tau, a.spearman, a.top1, a.top10)]
        rows.append(
            [result.variant, *figures, f"{a.mean_difference:.2g}", f"{a.max_difference:.2g}", *quality, noise, verdict]
        )
    if graded:
        first = validation.first_stage
        rows.append(["first stage", *[""] * 6, f"{first['ndcg10']:.4f}", f"{first['mrr10']:.4f}", "", ""])
    columns = ["variant", "tau-b", "Spearman", "top-1", "top-10", "mean |Δ|", "max |Δ|"]
    columns += ["nDCG@10", "MRR@10"] if graded else []
    title = f"agreement with torch-fp32 on {validation.data}: {validation.queries} queries, {validation.pairs} pairs"
    title += f" ({validation.truncated} cut to the model's length, {validation.empty} empty texts)"
    out.table(title, [*columns, "noise max |Δ| / tau", "gates"], rows)


def _gate(result: GateResult) -> str:
    sign = ">" if result.gate.at_most else "<"
    return f"{result.gate.measure} {result.value:.3f} {sign} {result.gate.bound:g}"


def print_bench(out: Output, bench: Bench) -> None:
    """Speed, latency, loading, memory, CPU and agreement of each case, as a ratio to the baseline."""
    rows = []
    for m in bench.measured:
        cpu = f"{100 * m.mean_cores / bench.cores:.0f} / {100 * m.peak_cores / bench.cores:.0f} %"
        agreed = [f"{m.agreement.tau:.3f}", f"{m.agreement.top10:.3f}"] if m.agreement else ["", ""]
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
    columns = ["variant/strategy", "speed", "pairs/s", "tokens/s", "call p50 / p95 ms", "load s", "peak MiB"]
    columns += ["CPU mean / peak", "cores", "CPU seen in parent", "tau-b", "top-10"]
    title = (
        f"Daft batch UDF on {bench.device}: {bench.pairs} pairs of {bench.data}, mean {bench.tokens / bench.pairs:.0f}"
    )
    title += f" tokens, {bench.threads} threads each, {len(bench.measured[0].rounds)} interleaved rounds"
    out.table(title, columns, rows)
