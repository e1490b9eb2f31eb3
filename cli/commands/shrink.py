"""`xopt shrink`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xopt.cli import options
from xopt.cli.output import Output, interval_text, json_option

if TYPE_CHECKING:
    from xopt.optimize.shrink.shrink import Shrunk
    from xopt.runtime.folder import ModelFolder

__all__ = ["print_shrunk", "shrink"]

EXAMPLES = """\b
Examples:
  xopt shrink models/large -o models/small --layers 3 --data candidates.jsonl
"""

COLUMNS = {
    "tau": "tau-b",
    "top10": "top-10",
    "dcg10_loss": "DCG loss",
    "ndcg10": "nDCG@10",
    "full_ndcg10": "of DIR",
}


@click.command(epilog=EXAMPLES)
@options.model_folder
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="SMALL",
    required=True,
    help="The new model folder.",
)
@click.option(
    "--layers",
    type=options.AT_LEAST_1,
    metavar="K",
    required=True,
    help="How many layers to keep.",
)
@options.data
@click.option(
    "--minutes",
    type=options.Number(min=0, min_open=True),
    metavar="M",
    default=30,
    help="How long to train. Scoring before and after the training takes minutes more.",
)
@click.option("--force", is_flag=True, help="Replace SMALL once the new one is complete.")
@options.threads
@options.device
@options.trust
@json_option
def shrink(
    model: ModelFolder,
    out: Path,
    layers: int,
    read: options.ReadCandidates,
    output: Output,
    **arguments: Any,
) -> None:
    """Make a smaller model of DIR: fewer layers, distilled from DIR's own scores.

    The layers that stay are those that agree best before the training. The model learns, without
    labels, from the queries and documents of --data. Sentences of the documents are queries too.
    A fifth of the queries, 64 at most, is kept apart to show how well it ranks.

    DATA may be documents alone, without a column `query`, or may have one document per query:
    BM25 then finds the others. SMALL is a model folder like any other. Quantise it, validate it,
    or let it order candidates for DIR with `xopt cascade DIR --first SMALL`.
    """
    from xopt.optimize.shrink.shrink import shrink as run

    result = run(model, out, layers, read(documents=True), **arguments)
    output.json(result)
    print_shrunk(output, result)


def print_shrunk(output: Output, shrunk: Shrunk) -> None:
    """Print the layers kept, the training, and how well the model ranks as the larger one does."""
    row = {
        "layers": ", ".join(str(layer + 1) for layer in shrunk.kept),
        "pairs": f"{shrunk.distilled.pairs:,}",
        "minutes": f"{shrunk.distilled.seconds / 60:.1f}",
        "tau-b untrained": f"{shrunk.untrained:.3f}",
    }
    for name, interval in shrunk.measures.items():
        row[COLUMNS[name]] = interval_text(interval, separator="\n")
    title = (
        f"{shrunk.folder}: {len(shrunk.kept)} of {shrunk.layers} layers of {shrunk.source}, "
        f"on {shrunk.queries} queries that it has not learned from"
    )
    output.table(title, [row], wrapped=("layers",))
    output.line(
        f"Next: xopt quantize {shrunk.folder} --int8. Then validate it as any model, or use it "
        "in a cascade, on queries that it has not learned from: "
        f"xopt cascade {shrunk.source} --first {shrunk.folder} --data DATA"
    )
