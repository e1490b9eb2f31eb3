"""`xopt optimize`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xopt.cli.cascade_tables import print_cascaded, print_certified
from xopt.cli.options import (
    data_options,
    device_option,
    gate_options,
    minutes_option,
    rank_label_option,
    trust_option,
)
from xopt.cli.output import Output, json_option, plain
from xopt.cli.tables import print_advice, print_bench, print_tuning, print_validation

if TYPE_CHECKING:
    from xopt.runtime.data.candidates import Candidates

__all__ = ["optimize"]


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The model folder.  [default: models/NAME-xopt]",
)
@data_options
@gate_options
@click.option(
    "--pairs",
    type=click.IntRange(min=1),
    default=160,
    show_default=True,
    help="Pairs in the bench.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Rounds of the bench.",
)
@minutes_option
@click.option("-v", "--verbose", is_flag=True, help="Also the plans that tune tried.")
@device_option
@rank_label_option
@trust_option
@json_option
def optimize(
    model: str,
    out: Path | None,
    read: Callable[[], Candidates],
    bounds: dict[str, float],
    pairs: int,
    repeat: int,
    minutes: float,
    verbose: bool,
    device: str,
    rank_label: str | None,
    trust_remote_code: bool,
    json_file: str | None,
) -> None:
    """Export, quantise, tune, validate and bench MODEL, and recommend a variant.

    For a GPU half precision takes the place of INT8.

    MODEL is a hub id, a folder, or `demo`. Steps that DIR holds already are not done again. A
    part of the queries calibrates and tunes, the rest judges, fastest variant first. What fails a
    gate, or what the queries or the minutes are too few for, is shown as such and not
    recommended. DIR/report.html has it all.
    """
    from xopt.optimize.model.source import default_out
    from xopt.optimize.pipeline import optimize as run
    from xopt.optimize.report.page import gather, render
    from xopt.runtime.files import write_text

    output, candidates = Output(json_file), read()
    result = run(
        model,
        out or default_out(model),
        candidates,
        bounds,
        pairs,
        repeat,
        device,
        trust_remote_code,
        minutes,
        rank_label,
    )
    output.json(result)
    page = Path(result.folder) / "report.html"
    write_text(page, render(gather([plain(result)]), None, markdown=False))
    print_advice(output, result.recommendation, result.validation)
    if result.cascade:
        print_certified(output, result.cascade.certified)
        if result.cascade.bench:
            print_cascaded(output, result.cascade.bench)
    print_validation(output, result.validation)
    print_bench(output, result.bench)
    for tuning in result.tunings if verbose else ():
        print_tuning(output, tuning)
    output.line(f"Report: {page}")
