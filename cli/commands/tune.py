"""`xopt tune`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from xopt.cli import options
from xopt.cli.output import Output, json_option

if TYPE_CHECKING:
    from xopt.optimize.tune import Tuning
    from xopt.runtime.folder import ModelFolder

__all__ = ["print_tuning", "tune"]

EXAMPLES = """\b
Examples:
  xopt tune models/minilm --variant onnx-int8
"""


@click.command(epilog=EXAMPLES)
@options.model_folder
@options.variants
@options.data
@options.threads
@options.device
@options.trust
@json_option
def tune(
    model: ModelFolder,
    variants: tuple[str, ...],
    read: options.ReadCandidates,
    threads: int | None,
    device: str,
    output: Output,
) -> None:
    """Find the fastest plan for this machine: callers x threads x tokens per forward.

    The plan goes into the manifest of DIR, where every scorer on this machine finds it.

    On a GPU, the threads are tokenizer calls that run ahead of it. Give it some 10,000 pairs.
    """
    from xopt.optimize.tune import tune as run
    from xopt.runtime.scoring.variants import variants_on

    chosen = variants or variants_on(model, device)
    _, tunings = run(model, chosen, read(), threads, device)
    output.json(tunings)
    for tuning in tunings:
        print_tuning(output, tuning)


def print_tuning(output: Output, tuning: Tuning) -> None:
    rows = [
        {
            "callers x threads": f"{trial.plan.callers} x {trial.plan.threads}",
            "tokens a forward": str(trial.plan.tokens),
            "pairs/s": f"{trial.pairs_per_s[-1]:.1f}",
            "rungs": str(len(trial.pairs_per_s)),
        }
        for trial in tuning.trials
    ]
    output.table(
        f"{tuning.variant} on {tuning.machine}: {len(rows)} plans by successive halving, "
        "best first",
        rows,
    )
