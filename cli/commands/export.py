"""`xopt export`"""

from __future__ import annotations

from pathlib import Path

import click

from xopt.cli.options import rank_label_option, refuse, trust_option
from xopt.cli.output import Output, json_option

__all__ = ["export"]


@click.command()
@click.argument("model", type=click.Path())
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The model folder.  [default: models/NAME-xopt]",
)
@click.option(
    "--force", is_flag=True, help="Replace DIR if it exists, once the new one is complete."
)
@trust_option
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Read weights from pickles, which can run code, where there are no safetensors.",
)
@click.option("--torch-only", is_flag=True, help="Leave ONNX out, where a GPU will run it.")
@click.option(
    "--portable",
    is_flag=True,
    help="No operators of onnxruntime's own in the graph, to publish it; a little slower.",
)
@click.option(
    "--exporter",
    type=click.Choice(["torch", "optimum"]),
    help="What writes the graph: torch's own exporter, or optimum's (pip install 'xopt-rerank[optimum]').  "
    "[default: torch, optimum where that cannot]",
)
@rank_label_option
@json_option
def export(
    model: str,
    out: Path | None,
    force: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
    torch_only: bool,
    portable: bool,
    exporter: str | None,
    rank_label: str | None,
    json_file: str | None,
) -> None:
    """Export MODEL to ONNX, in a self-contained model folder.

    MODEL is a hub id, a folder, or `demo`: any CrossEncoder of sentence-transformers, its modules
    and language models included. The folder loads in sentence-transformers as it is, and appears
    only after the logits of its FP32 variants have been checked against sentence-transformers'
    (at most 1e-4 apart).
    """
    from xopt.optimize.export import export as run
    from xopt.optimize.model.source import default_out

    if torch_only:
        refuse(("portable", "exporter"), "is for a graph, which --torch-only leaves out")
    output = Output(json_file)
    folder = run(
        model,
        out or default_out(model),
        force=force,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        torch_only=torch_only,
        exporter=exporter,
        portable=portable,
        rank_label=rank_label,
    )
    output.json({"folder": folder.path, "manifest": folder.manifest})
    rows = [
        [v.name, v.file, f"{folder.size_bytes(v.name) / 1e6:.1f}"]
        for v in folder.manifest.variants.values()
    ]
    output.table(
        f"{folder.path}: max_length {folder.manifest.max_length}, labels {folder.manifest.labels}",
        ["variant", "file", "MB"],
        rows,
    )
