"""`xopt export`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xopt.cli import options
from xopt.cli.output import Output, json_option

if TYPE_CHECKING:
    from xopt.runtime.folder import ModelFolder

__all__ = ["export"]

EXAMPLES = """\b
Examples:
  xopt export cross-encoder/ms-marco-MiniLM-L6-v2 -o models/minilm
  xopt export my-qwen3-reranker -o models/qwen --template qwen3-reranker
"""


@click.command(epilog=EXAMPLES)
@options.model
@options.model_out
@click.option(
    "--force", is_flag=True, help="Replace the model folder DIR once the new one is complete."
)
@options.trust
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Read weights from pickles, which can run code, if there are no safetensors.",
)
@click.option("--torch-only", is_flag=True, help="Leave ONNX out, for a folder that a GPU runs.")
@click.option(
    "--portable",
    is_flag=True,
    help="Use no operators of onnxruntime's own, to publish the graph. It is a little slower.",
)
@click.option(
    "--exporter",
    type=click.Choice(["torch", "optimum"]),
    help="What writes the graph: torch's own exporter, or optimum's, from the extra `optimum`.  "
    "[default: torch, or optimum if torch's fails]",
)
@options.rank_label
@click.option(
    "--template",
    metavar="FILE",
    help="Chat template (Jinja) that makes a text of a query and a document. It replaces MODEL's. "
    "The names qwen3-reranker, bge-reranker-gemma and mxbai-rerank-v2 stand for theirs.",
)
@click.option(
    "--answers",
    metavar="TRUE[,FALSE]",
    help="The answers whose logits are compared, for a language model without modules.json: "
    "`yes,no` is the first less the second.",
)
@json_option
def export(
    model: str, out: Path | None, torch_only: bool, output: Output, **arguments: Any
) -> None:
    """Export MODEL to ONNX, in a self-contained model folder.

    MODEL is a hub id, a folder, or `demo`: any CrossEncoder of sentence-transformers, with all
    its modules, and language models too. sentence-transformers loads the folder as it is.

    The folder appears only after a check. Its tokens are those of sentence-transformers, and the
    logits of its FP32 variants differ by at most 1e-4. What cannot be reproduced is refused with
    the reason.

    A hub id is brought up to date if the hub answers within seconds, or else taken from the cache.
    """
    from xopt.optimize.export import export as run
    from xopt.optimize.model.source import default_out

    if torch_only:
        options.refuse(("portable", "exporter"), "is for a graph, which --torch-only leaves out")
    folder = run(model, out or default_out(model), torch_only=torch_only, **arguments)
    output.json({"folder": folder.path, "manifest": folder.manifest})
    print_exported(output, folder)


def print_exported(output: Output, folder: ModelFolder) -> None:
    manifest = folder.manifest
    rows = []
    for variant in manifest.variants.values():
        megabytes = folder.size_bytes(variant.name) / 1e6
        row = {"variant": variant.name, "file": variant.file, "MB": f"{megabytes:.1f}"}
        rows.append(row)
    title = f"{folder.path}: max_length {manifest.max_length}, labels {manifest.labels}"
    output.table(title, rows)
