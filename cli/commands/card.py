"""`xopt card`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from xopt.cli import options
from xopt.cli.output import Output, json_option

if TYPE_CHECKING:
    from xopt.runtime.folder import ModelFolder

__all__ = ["card"]

EXAMPLES = """\b
Examples:
  xopt card models/minilm --repo you/minilm-onnx
"""


@click.command(epilog=EXAMPLES)
@options.model_folder
@click.option(
    "--repo",
    metavar="ID",
    help="The repository that DIR will be uploaded to, for the code in the card.  [default: DIR]",
)
@click.option(
    "--base-model",
    metavar="ID",
    help="The hub id that DIR was made from, if its manifest has none.",
)
@click.option("--force", is_flag=True, help="Replace a README.md that xopt did not write.")
@json_option
def card(
    model: ModelFolder, repo: str | None, base_model: str | None, force: bool, output: Output
) -> None:
    """Write DIR/README.md, a model card for a hub.

    It has the metadata, what `xopt optimize` measured, and how to load the model. Nothing is
    uploaded: `hf upload ID DIR` does that. Before version 1 of huggingface-hub, the command is
    `huggingface-cli upload`.

    `xopt export --portable` and `xopt quantize --int8 --scheme portable` make graphs for runtimes
    other than onnxruntime.
    """
    from xopt.optimize.card import write_card

    repo = repo or model.path.resolve().name
    file = write_card(model, repo, base_model=base_model, force=force)
    output.json({"card": file})
    output.line(f"{file}: written")
