"""`xopt tune`"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from xopt.cli.options import (
    data_options,
    device_option,
    folder_argument,
    threads_option,
    trust_option,
    variant_option,
)
from xopt.cli.output import Output, json_option
from xopt.cli.tables import print_tuning

if TYPE_CHECKING:
    from xopt.runtime.data.candidates import Candidates

__all__ = ["tune"]


@click.command()
@folder_argument
@variant_option
@data_options
@threads_option
@device_option
@trust_option
@json_option
def tune(
    folder: str,
    variants: tuple[str, ...],
    read: Callable[[], Candidates],
    threads: int | None,
    device: str,
    trust_remote_code: bool,
    json_file: str | None,
) -> None:
    """Find the fastest plan for this machine: callers x threads x tokens a forward.

    On a GPU the threads are calls of the tokenizer ahead of it.

    Writes it into the manifest of the model folder DIR, where every scorer on this machine finds
    it.
    """
    from xopt.optimize.tune import tune as run
    from xopt.runtime.folder import ModelFolder
    from xopt.runtime.scoring.variants import variants_on

    output, model = Output(json_file), ModelFolder.open(folder, trust_remote_code)
    _, tunings = run(model, variants or variants_on(model, device), read(), threads, device)
    output.json(tunings)
    for tuning in tunings:
        print_tuning(output, tuning)
