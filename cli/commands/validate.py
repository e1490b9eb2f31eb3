"""`xopt validate`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xopt.cli.options import (
    DATA_NAMES,
    data_options,
    device_option,
    gate_options,
    minutes_option,
    refuse,
    threads_option,
    trust_option,
    variant_option,
)
from xopt.cli.output import Output, json_option
from xopt.cli.tables import print_validation

if TYPE_CHECKING:
    from xopt.runtime.data.candidates import Candidates

__all__ = ["validate"]

UNDECIDED_CODES = {None: 3, "pass": 0, "fail": 1}


@click.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path())
@variant_option
@data_options
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
    help="The TREC run that --scores is held against; for DIR `torch`, which scores all of the reference, where "
    "otherwise onnx-fp32 does it once it gives the same logits.",
)
@click.option(
    "--qrels", metavar="FILE", type=click.Path(), help="With --scores: TREC qrels, for quality."
)
@gate_options
@minutes_option
@click.option(
    "--undecided",
    type=click.Choice(["pass", "fail"]),
    help="The exit code of an undecided verdict: 0 or 1.  [default: 3]",
)
@threads_option
@device_option
@trust_option
@json_option
def validate(
    folder: str | None,
    variants: tuple[str, ...],
    read: Callable[[], Candidates],
    scores: str | None,
    reference: str | None,
    qrels: str | None,
    bounds: dict[str, float],
    minutes: float,
    undecided: str | None,
    threads: int | None,
    device: str,
    trust_remote_code: bool,
    json_file: str | None,
) -> None:
    """Compare the ranking of variants with the FP32 model's, or of a run with another one.

    Scores the same candidates with the reference (torch, FP32, as sentence-transformers runs it)
    and each variant of DIR, on as many queries as the gates need. Exits with 0 where all pass, 1
    where a gate fails and 3 where the queries, or the minutes, are too few to decide.
    """
    from xopt.optimize.judge.statistics import FAILED, PASSED, UNDECIDED
    from xopt.optimize.judge.verdict import gates_with
    from xopt.optimize.validate import EXACT_VARIANT, validate_runs
    from xopt.optimize.validate import validate as run
    from xopt.runtime.folder import ModelFolder
    from xopt.runtime.scoring.variants import variants_on

    if (
        (scores is None) == (folder is None)
        or (scores and variants)
        or (scores is None) != (reference in (None, "torch"))
        or (qrels and not scores)
    ):
        raise click.UsageError(
            "give a model folder, or two runs with --scores FILE and --reference FILE [--qrels FILE]"
        )
    output = Output(json_file)
    if scores and reference:
        refuse(
            (*DATA_NAMES, "minutes", "threads", "device", "trust_remote_code"),
            "goes with a model folder, not with --scores",
        )
        gates = gates_with(bounds, graded=qrels is not None)
        result = validate_runs(Path(reference), Path(scores), Path(qrels) if qrels else None, gates)
    else:
        model, candidates = ModelFolder.open(str(folder), trust_remote_code), read()
        gates = gates_with(
            bounds, bool(candidates.qrels), 1 if model.manifest.ranks else model.manifest.labels
        )
        exact = None if reference == "torch" else EXACT_VARIANT
        chosen = variants or variants_on(model, device)
        result = run(
            model, chosen, candidates, gates, threads, device, exact=exact, minutes=minutes
        )
    output.json(result)
    print_validation(output, result)
    code = {PASSED: 0, FAILED: 1, UNDECIDED: UNDECIDED_CODES[undecided]}[result.verdict]
    if code:
        raise SystemExit(code)
