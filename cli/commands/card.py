"""`xopt card`"""

from __future__ import annotations

import click

from xopt.cli.options import folder_argument
from xopt.cli.output import Output, json_option

__all__ = ["card"]


@click.command()
@folder_argument
@click.option(
    "--repo",
    metavar="ID",
    help="The repository that DIR will be uploaded to, for its lines of code.  [default: DIR]",
)
@click.option(
    "--base-model",
    metavar="ID",
    help="The hub id that DIR was made of, where its manifest has none.",
)
@click.option("--force", is_flag=True, help="Replace a README.md that xopt did not write.")
@json_option
def card(
    folder: str, repo: str | None, base_model: str | None, force: bool, json_file: str | None
) -> None:
    """Write DIR/README.md, the card of a model on a hub: metadata, what was measured, how to load
    it.

    What `xopt optimize` measured goes into it. Nothing is uploaded: `hf upload ID DIR` does that.
    `xopt export --portable` and `xopt quantize --int8 --scheme portable` make graphs for runtimes
    other than onnxruntime.
    """
    from xopt.optimize.card import write_card
    from xopt.runtime.folder import ModelFolder

    output, model = Output(json_file), ModelFolder.open(folder)
    file = write_card(model, repo or model.path.resolve().name, base_model=base_model, force=force)
    output.json({"card": file})
    output.line(f"{file}: written")
