"""`xopt shrink`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xopt.cli.cascade_tables import print_shrunk
from xopt.cli.options import (
    Number,
    data_options,
    device_option,
    folder_argument,
    threads_option,
    trust_option,
)
from xopt.cli.output import Output, json_option

if TYPE_CHECKING:
    from xopt.runtime.data.candidates import Candidates

__all__ = ["shrink"]


@click.command()
@folder_argument
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="SMALL",
    required=True,
    help="The new model folder.",
)
@click.option(
    "--layers", type=click.IntRange(min=1), required=True, help="How many layers to keep."
)
@data_options
@click.option(
    "--minutes",
    type=Number(min=0, min_open=True),
    default=30,
    show_default=True,
    help="How long to train. Scoring the lists before and the held-out queries after takes minutes more.",
)
@click.option("--force", is_flag=True, help="Replace SMALL once the new one is complete.")
@threads_option
@device_option
@trust_option
@json_option
def shrink(
    folder: str,
    out: Path,
    layers: int,
    read: Callable[..., Candidates],
    minutes: float,
    force: bool,
    threads: int | None,
    device: str,
    trust_remote_code: bool,
    json_file: str | None,
) -> None:
    """Make a smaller model of DIR: fewer layers, distilled from DIR's own scores.

    Which layers stay is found by their agreement before the training. It learns, without labels,
    from the queries and documents of --data and from queries drawn from the documents; a fifth of
    the queries, 64 at most, shows what was reached. DATA may be documents alone, without a column
    query, or have one for each query: BM25 then finds others. SMALL is a model folder like any
    other: quantise it, validate it, or let it order for DIR with `xopt cascade DIR --first
    SMALL`.
    """
    from xopt.optimize.shrink.shrink import shrink as run
    from xopt.runtime.folder import ModelFolder

    output, model = Output(json_file), ModelFolder.open(folder, trust_remote_code)
    result = run(
        model,
        out,
        layers,
        read(documents=True),
        minutes=minutes,
        device=device,
        threads=threads,
        force=force,
    )
    output.json(result)
    print_shrunk(output, result)
