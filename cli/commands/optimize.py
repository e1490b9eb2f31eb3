"""`xopt optimize`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xopt.cli import options
from xopt.cli.commands.bench import print_bench, print_cascaded
from xopt.cli.commands.cascade import print_certified
from xopt.cli.commands.tune import print_tuning
from xopt.cli.commands.validate import MEASURES, measure_text, print_validation, why_not_passed
from xopt.cli.output import Output, json_option, plain

if TYPE_CHECKING:
    from xopt.optimize.pipeline import Outcome, Recommendation
    from xopt.optimize.validate import Validation

__all__ = ["optimize", "print_recommendation"]

EXAMPLES = """\b
Examples:
  xopt optimize demo
  xopt optimize cross-encoder/ms-marco-MiniLM-L6-v2 --data candidates.jsonl
"""

RECOMMENDED_BY = ("tau", "top10", "dcg10_loss", "labels")
SUMMARISED = (*RECOMMENDED_BY, "ndcg10")


@click.command(epilog=EXAMPLES)
@options.model
@options.model_out
@options.data
@options.gates
@click.option(
    "--pairs", type=options.AT_LEAST_1, metavar="N", default=160, help="Pairs in the bench."
)
@click.option(
    "--repeat", type=options.AT_LEAST_1, metavar="N", default=2, help="Rounds of the bench."
)
@options.minutes
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Print the plans that tune tried, the whole bench and all measures, too.",
)
@options.device
@options.rank_label
@options.trust
@json_option
def optimize(
    model: str,
    out: Path | None,
    read: options.ReadCandidates,
    bounds: dict[str, float],
    pairs: int,
    verbose: bool,
    output: Output,
    **arguments: Any,
) -> None:
    """Export, quantise, tune, validate and bench MODEL, and recommend a variant.

    MODEL is a hub id, a folder, or `demo`. Variants and plans that DIR holds already are not made
    again; timing and judging are. If the files of MODEL have changed since, the command refuses
    them. For a GPU, half precision takes the place of INT8.

    A fifth of the queries, 64 at most, calibrates and tunes. The others judge, fastest variant
    first. A variant is not recommended if it fails a gate, or if the queries or the minutes are
    too few to tell. DIR/report.html has all results.

    Every variant scores a few pairs first. Those that can win are tuned and run in every round of
    the bench, and so is the fastest exact one. The others run in one round.
    """
    from xopt.optimize.model.source import default_out
    from xopt.optimize.pipeline import optimize as run

    outcome = run(model, out or default_out(model), read(), bounds, pairs, **arguments)
    output.json(outcome)
    page = _write_report(outcome)
    print_outcome(output, outcome, verbose)
    output.line(f"Report: {page}")


def _write_report(outcome: Outcome) -> Path:
    from xopt.optimize.report.page import gather, render
    from xopt.runtime.files import write_text

    page = Path(outcome.folder) / "report.html"
    write_text(page, render(gather([plain(outcome)]), None, markdown=False))
    return page


def print_outcome(output: Output, outcome: Outcome, verbose: bool) -> None:
    """Print what was found, the recommendation last, where a terminal shows it."""
    if verbose:
        for tuning in outcome.tunings:
            print_tuning(output, tuning)
        print_bench(output, outcome.bench)
        print_validation(output, outcome.validation)
    _print_summary(output, outcome)
    if outcome.cascade:
        print_certified(output, outcome.cascade.certified)
        if outcome.cascade.bench:
            print_cascaded(output, outcome.cascade.bench)
    print_recommendation(output, outcome.recommendation, outcome.validation)


def _print_summary(output: Output, outcome: Outcome) -> None:
    """Print a row for each variant, fastest first, and why some have not passed."""
    ratios = {}
    for measured in outcome.bench.measured:
        if measured.case.strategy == "planned":
            ratios[measured.case.variant] = measured.ratio
    timed = [judged for judged in outcome.validation.judged if judged.name in ratios]
    timed.sort(key=lambda judged: -ratios[judged.name])
    rows = []
    for judged in timed:
        row = {"variant": judged.name, "speed": f"{ratios[judged.name]:.1f} x"}
        for name in SUMMARISED:
            measure = judged.measures.get(name)
            if measure is not None and measure.queries:
                row[MEASURES[name]] = f"{measure.mean:.3f}"
        rows.append(row | {"verdict": judged.verdict})
    output.table("Speed against sentence-transformers as it comes, and agreement with FP32", rows)
    not_passed = [judged for judged in timed if judged.verdict != "pass"]
    for judged in not_passed:
        for reason in why_not_passed(judged):
            output.line(f"{judged.name}: {reason}")
    if not_passed:
        output.line("")


def print_recommendation(
    output: Output, recommendation: Recommendation, validation: Validation
) -> None:
    """Print what to run, its speed, how well it ranks, and the code that scores with it."""
    chosen = next(each for each in validation.judged if each.name == recommendation.variant)
    measures = ", ".join(
        f"{MEASURES[name]} {measure_text(chosen.measures[name])}"
        for name in RECOMMENDED_BY
        if name in chosen.measures and chosen.measures[name].queries
    )
    output.line(
        f"Recommended: {chosen.name}, {recommendation.ratio:.1f} times as fast as "
        "sentence-transformers as it comes"
    )
    output.line(f"On {chosen.queries} queries: {measures}")
    output.line("")
    output.line("    from xopt import open_scorer")
    output.line(f"    {recommendation.python}")
    output.line("")
