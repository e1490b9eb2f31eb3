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
@click.option("--reference", metavar="FILE", type=click.Path(), help="The TREC run that --scores is held against.")
@click.option("--qrels", metavar="FILE", type=click.Path(), help="With --scores: TREC qrels, for quality.")
@gate_options
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
    threads: int | None,
    device: str,
    trust_remote_code: bool,
    json_file: str | None,
) -> None:
    """Compare the ranking of variants with the FP32 model's, or of a run with another one.

    Scores the same candidates with the reference (torch, FP32, as sentence-transformers runs it) and each
    variant of DIR. Exits with 1 where a gate fails, or where the queries are too few to decide.
    """
    from xopt.optimize.judge.verdict import gates_with
    from xopt.optimize.validate import validate as run
    from xopt.optimize.validate import validate_runs
    from xopt.runtime.folder import ModelFolder
    from xopt.runtime.scoring.variants import variants_on

    if (
        (scores is None) == (folder is None)
        or (scores and variants)
        or (scores is None) != (reference is None)
        or (qrels and not scores)
    ):
        raise click.UsageError(
            "give a model folder, or two runs with --scores FILE and --reference FILE [--qrels FILE]"
        )
    output = Output(json_file)
    if scores and reference:
        refuse((*DATA_NAMES, "threads", "device", "trust_remote_code"), "goes with a model folder, not with --scores")
        gates = gates_with(bounds, graded=qrels is not None)
        result = validate_runs(Path(reference), Path(scores), Path(qrels) if qrels else None, gates)
    else:
        model, candidates = ModelFolder.open(str(folder), trust_remote_code), read()
        gates = gates_with(bounds, bool(candidates.qrels), model.manifest.labels)
        result = run(model, variants or variants_on(model, device), candidates, gates, threads, device)
    output.json(result)
    print_validation(output, result)
    if not result.passed:
        raise SystemExit(1)
