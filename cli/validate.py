"""`xopt validate`"""

from __future__ import annotations

import click

from xopt.cli.options import data_option, folder_argument, threads_option, variant_option
from xopt.cli.output import Output, json_option
from xopt.cli.tables import print_validation

__all__ = ["validate"]


@click.command()
@folder_argument
@variant_option
@data_option
@click.option("--queries", type=click.IntRange(min=1), help="Use the first so many queries.  [default: all]")
@click.option("--min-tau", type=click.FloatRange(-1, 1), help="Gate: mean Kendall tau-b at least.  [default: 0.80]")
@click.option("--min-top10", type=click.FloatRange(0, 1), help="Gate: mean top-10 overlap at least.  [default: 0.85]")
@click.option(
    "--max-ndcg-drop", type=float, help="Gate: loss of nDCG@10 at most, where there are qrels.  [default: 0.01]"
)
@threads_option
@json_option
def validate(
    folder: str,
    variants: tuple[str, ...],
    data: str,
    queries: int | None,
    min_tau: float | None,
    min_top10: float | None,
    max_ndcg_drop: float | None,
    threads: int | None,
    json_file: str | None,
) -> None:
    """Compare the ranking of variants with the FP32 model's.

    Scores the same candidates with the reference (sentence-transformers, torch, FP32) and each
    variant. Exits with 1 where a variant fails a gate.
    """
    from dataclasses import replace

    from xopt.optimize.validate import GATES
    from xopt.optimize.validate import validate as run
    from xopt.runtime.candidates import read_candidates
    from xopt.runtime.folder import ModelFolder

    bounds = {"tau": min_tau, "top10": min_top10, "ndcg10_drop": max_ndcg_drop}
    gates = [gate if (bound := bounds[gate.measure]) is None else replace(gate, bound=bound) for gate in GATES]
    model = ModelFolder.open(folder)
    result = run(model, variants or list(model.manifest.variants), read_candidates(data, queries), gates, threads)
    output = Output(json_file)
    print_validation(output, result)
    output.json(result)
    if not result.passed:
        raise SystemExit(1)
