"""`xopt validate`"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from xopt.cli import options
from xopt.cli.output import Output, interval_text, json_option

if TYPE_CHECKING:
    from xopt.optimize.judge.statistics import Gate, GateResult, Interval
    from xopt.optimize.judge.verdict import Judged
    from xopt.optimize.judge.worst_queries import WorstQuery
    from xopt.optimize.validate import Validation
    from xopt.runtime.data.candidates import Candidates
    from xopt.runtime.folder import ModelFolder

__all__ = [
    "MEASURES",
    "gates_for",
    "measure_text",
    "print_validation",
    "validate",
    "why_not_passed",
]

EXAMPLES = """\b
Examples:
  xopt validate models/minilm --variant onnx-int8 --data candidates.jsonl
  xopt validate --scores new.run --reference old.run --qrels test.qrels
"""

EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
# the measures that the table shows, with their columns; the JSON has all
MEASURES = {
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
TEXT_WIDTH = 60  # of a query or a document


@click.command(epilog=EXAMPLES)
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path())
@options.variants
@options.data
@click.option(
    "--scores",
    metavar="FILE",
    type=click.Path(),
    help="Judge this TREC run, of any engine, in place of variants of DIR.",
)
@click.option(
    "--reference",
    metavar="FILE|torch",
    type=click.Path(),
    help="With --scores: the TREC run to compare it with. For DIR: `torch` has torch score all of "
    "the reference. Without it, onnx-fp32 takes over once its logits are the same.",
)
@click.option(
    "--qrels", metavar="FILE", type=click.Path(), help="With --scores: TREC qrels, for quality."
)
@options.gates
@options.minutes
@click.option(
    "--undecided",
    type=click.Choice(["pass", "fail"]),
    help="The exit code of an undecided verdict: 0 or 1.  [default: 3]",
)
@options.threads
@options.device
@options.trust
@json_option
def validate(
    folder: str | None,
    variants: tuple[str, ...],
    read: options.ReadCandidates,
    scores: str | None,
    reference: str | None,
    qrels: str | None,
    bounds: dict[str, float],
    undecided: str | None,
    device: str,
    trust_remote_code: bool,
    output: Output,
    **limits: Any,
) -> None:
    """Compare the ranking of variants with the FP32 model's, or one run with another.

    Both score the same candidates. Queries are drawn in growing groups, until every variant is
    decided, the data ends, or the minutes are over. Queries that calibrated a variant are left
    out.

    Exits with 0 if all gates pass, with 1 if one fails, and with 3 if that is undecided.
    """
    from xopt.runtime.folder import ModelFolder

    _check_arguments(folder, variants, scores, reference, qrels)
    if scores is not None and reference is not None:
        result = _validate_runs(reference, scores, qrels, bounds)
    else:
        model = ModelFolder.open(str(folder), trust_remote_code)
        with_torch = reference == "torch"
        result = _validate_variants(model, variants, read(), bounds, with_torch, device, **limits)
    output.json(result)
    print_validation(output, result)
    output.line(f"Verdict: {result.verdict}")
    _exit(result.verdict, undecided)


def _exit(verdict: str, undecided: str | None) -> NoReturn:
    """Exit with the code of a verdict; `undecided` is what stands for one that is open."""
    if verdict == "undecided" and undecided:
        verdict = undecided
    click.get_current_context().exit(EXIT_CODES[verdict])


def _check_arguments(
    folder: str | None,
    variants: tuple[str, ...],
    scores: str | None,
    reference: str | None,
    qrels: str | None,
) -> None:
    """Raise click.UsageError unless there is either a model folder or two runs."""
    has_reference_run = reference not in (None, "torch")
    if scores is None:
        fits = folder is not None and not has_reference_run and not qrels
    else:
        fits = folder is None and has_reference_run and not variants
    if not fits:
        raise click.UsageError(
            "give a model folder, or two runs with --scores FILE and --reference FILE "
            "[--qrels FILE]"
        )
    if scores is not None:
        options.refuse(
            (*options.DATA_OPTIONS, "minutes", "threads", "device", "trust_remote_code"),
            "goes with a model folder, not with --scores",
        )


def _validate_runs(
    reference: str, scores: str, qrels: str | None, bounds: dict[str, float]
) -> Validation:
    from xopt.optimize.judge.verdict import gates_with
    from xopt.optimize.validate import validate_runs

    gates = gates_with(bounds, graded=qrels is not None)
    return validate_runs(Path(reference), Path(scores), Path(qrels) if qrels else None, gates)


def _validate_variants(
    model: ModelFolder,
    variants: tuple[str, ...],
    candidates: Candidates,
    bounds: dict[str, float],
    with_torch: bool,
    device: str,
    **limits: Any,
) -> Validation:
    from xopt.optimize import validate as judging
    from xopt.runtime.scoring.variants import variants_on

    return judging.validate(
        model,
        variants or variants_on(model, device),
        candidates,
        gates_for(model, candidates, bounds),
        device=device,
        exact=None if with_torch else judging.EXACT_VARIANT,
        **limits,
    )


def gates_for(
    model: ModelFolder, candidates: Candidates, bounds: dict[str, float]
) -> tuple[Gate, ...]:
    """Return the gates that fit the model's labels and the data; see `gates_with`."""
    from xopt.optimize.judge.verdict import gates_with

    labels = 1 if model.manifest.ranks else model.manifest.labels
    return gates_with(bounds, bool(candidates.qrels), labels)


def print_validation(output: Output, validation: Validation) -> None:
    """Print each variant's measures and verdict, then the query on which it lost most."""
    known = {name for judged in validation.judged for name in judged.measures}
    shown = [name for name in MEASURES if name in known]
    rows = []
    for judged in validation.judged:
        row = {"variant": judged.name, "queries": str(judged.queries)}
        row |= _measure_cells(judged.measures, shown)
        row["mean / max |Δ|"] = f"{judged.mean_difference:.2g} / {judged.max_difference:.2g}"
        row["noise"] = "" if judged.noise is None else f"{judged.noise:.1g}"
        row["verdict"] = judged.verdict
        rows.append(row)
    if validation.first_stage:
        row = {"variant": "first stage", "queries": str(validation.queries)}
        rows.append(row | _measure_cells(validation.first_stage, shown))
    output.table(_title(validation), rows)
    for judged in validation.judged:
        for reason in why_not_passed(judged):
            output.line(f"{judged.name}: {reason}")
    for judged in validation.judged:
        if judged.losses:
            _print_worst_query(output, judged.name, judged.losses[0])


def _title(validation: Validation) -> str:
    title = (
        f"agreement with the reference on {validation.data}: "
        f"{validation.queries} of {validation.all_queries} queries, {validation.pairs} pairs "
        f"({validation.truncated} cut to the model's length, {validation.empty} empty texts)"
    )
    if validation.prepared_with:
        title += f"; {validation.prepared_with} more calibrated or tuned and are left out"
    if validation.reference_difference:
        title += (
            f"; scored by {validation.reference}, "
            f"{validation.reference_difference:.1g} from sentence-transformers"
        )
    if validation.out_of_time:
        title += "; the minutes ended before all was decided"
    if validation.missing or validation.extra:
        title += f"; the run lacks {validation.missing} of them and has {validation.extra} others"
    return title


def _measure_cells(intervals: dict[str, Interval], names: Sequence[str]) -> dict[str, str]:
    """Format a row's measures by column; one that it lacks is an empty cell."""
    cells = {}
    for name in names:
        measured = name in intervals
        cells[MEASURES[name]] = measure_text(intervals[name], separator="\n") if measured else ""
    return cells


def measure_text(interval: Interval, separator: str = " ") -> str:
    """Format a measure, without its interval if the queries do not differ."""
    if not interval.queries:
        return ""
    if interval.low < interval.high:
        return interval_text(interval, separator=separator)
    return f"{interval.mean:.3f}"


def why_not_passed(judged: Judged) -> list[str]:
    """Return the reasons why a variant has not passed, a sentence for each."""
    found = []
    if judged.broken:
        found.append(f"FAIL: its scores are {judged.broken}")
    if not judged.gates and judged.verdict == "undecided":
        found.append(
            "undecided: no gate can be measured on this data, a candidate or a few for each query"
        )
    has_failed = judged.verdict == "fail"
    found += [_reason(each, has_failed) for each in judged.gates if each.verdict != "pass"]
    return found


def _reason(result: GateResult, variant_failed: bool) -> str:
    """Explain a gate that failed or is undecided."""
    gate = result.gate
    bound = f"asked {'at most' if gate.at_most else 'at least'} {gate.bound:g}"
    measured = f"{gate.measure} {measure_text(result.interval)}, {bound}"
    if result.verdict == "fail":
        return f"FAIL: {measured}"
    if not result.interval.queries:
        return f"undecided: {gate.measure}, {bound}, cannot be measured on these queries"
    if variant_failed and not gate.veto:
        return f"open: {measured}; no more queries were scored once the variant had failed"
    prefix = "not shown, and not held against it" if gate.veto else "undecided"
    reason = f"{prefix}: {measured}; {result.interval.queries} queries are too few"
    if result.queries_needed:
        reason += f"; about {result.queries_needed:,} would do"
    return reason


def _print_worst_query(output: Output, variant: str, worst: WorstQuery) -> None:
    """Print the documents of a query, with their places in both rankings."""
    graded = any(document.grade is not None for document in worst.documents)
    rows = []
    for document in worst.documents:
        row = {
            "rank in the reference": str(document.reference_rank),
            "rank": str(document.rank),
            "score in the reference": f"{document.reference_score:.3f}",
            "score": f"{document.score:.3f}" if math.isfinite(document.score) else "",
        }
        if graded:
            row["grade"] = "" if document.grade is None else str(document.grade)
        row["document"] = document.doc_id
        row["text"] = _shorten(document.text)
        rows.append(row)
    lost = f"nDCG@10 {-worst.ndcg10_drop:+.3f}, " if worst.ndcg10_drop else ""
    title = (
        f"where {variant} differs most: query {worst.query_id} "
        f"({lost}rank-biased overlap {worst.rbo:.3f}) {_shorten(worst.query)}"
    )
    output.table(title, rows, wrapped=("document", "text"))


def _shorten(text: str) -> str:
    return textwrap.shorten(text, TEXT_WIDTH, placeholder=" …")
