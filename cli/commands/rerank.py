"""`xopt rerank`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from xopt.cli import options
from xopt.cli.output import Output, json_option

if TYPE_CHECKING:
    from xopt.runtime.folder import ModelFolder
    from xopt.runtime.jobs.rerank_files import Preview, Reranked
    from xopt.runtime.jobs.score import Counts

__all__ = ["print_preview", "print_reranked", "rerank"]

EXAMPLES = """\b
Examples:
  xopt rerank models/minilm candidates.parquet -o ranked.parquet --top-k 10
  xopt rerank models/minilm 's3://bucket/candidates/*.parquet' -o ranked --dry-run
"""


@click.command(epilog=EXAMPLES)
@options.model_folder
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    metavar="OUT",
    required=True,
    help="Where rankings go: a .parquet, .jsonl or .run (TREC) file, or a folder of Parquet files.",
)
@click.option(
    "--variant",
    metavar="NAME",
    help="The variant that scores.  [default: the one recommended on this machine, or onnx-fp32]",
)
@click.option(
    "--cascade",
    is_flag=True,
    help="Rank by DIR's cascade. Rows that it does not score have a null score.",
)
@click.option(
    "--top-k",
    type=options.AT_LEAST_1,
    metavar="K",
    help="Write only the best of each query, this many.  [default: every row]",
)
@click.option("--ids-only", is_flag=True, help="Write ids, score and rank, and no other columns.")
@options.columns
@click.option(
    "--first",
    metavar="COLUMN",
    help="The column of first-stage scores, for a cascade made with them.",
)
@click.option("--score", metavar="NAME", default="score", help="The column of scores to write.")
@click.option("--rank", metavar="NAME", default="rank", help="The column of ranks to write.")
@options.run
@options.split
@click.option(
    "--depth",
    type=options.AT_LEAST_1,
    metavar="N",
    help="Candidates per query of a BEIR folder or an `irds:` dataset.  [default: 100]",
)
@options.unchecked_device
@click.option(
    "--workers",
    type=options.AT_LEAST_1,
    metavar="N",
    help="Score in this many processes, on Ray in actors; with cuda each has a GPU.  "
    "[default: in this process, or on Ray one actor per node]",
)
@options.threads
@click.option(
    "--where",
    metavar="native|ray|ADDRESS",
    default="native",
    help="This machine, the Ray cluster that it belongs to, or the one at an address.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done, and estimate from a sample how long it would take.",
)
@click.option("--force", is_flag=True, help="Begin again, and replace OUT.")
@options.trust
@json_option
def rerank(
    model: ModelFolder,
    inputs: tuple[str, ...],
    out: str,
    device: str,
    workers: int | None,
    threads: int | None,
    where: str,
    dry_run: bool,
    force: bool,
    output: Output,
    **arguments: Any,
) -> None:
    """Rank files of candidates, millions of pairs if need be, and resume after any fault.

    INPUTs are Parquet, .jsonl, .csv or .tsv files, or folders or patterns of them, on this machine
    or a store (`s3://`, `gs://`, `https://`, ...). Collections are inputs too: BEIR folders,
    `irds:ID` and `hf:ID`. Each row comes out once, with its score, a logit, and its rank.

    OUT.job keeps what was done: the same command resumes from there, and scores nothing once all
    is done.
    """
    from xopt.runtime.data.columns import Columns
    from xopt.runtime.jobs.job import Settings
    from xopt.runtime.jobs.request import Resources
    from xopt.runtime.jobs.rerank_files import preview, run_job

    names = (*options.COLUMN_OPTIONS, "first")
    columns = Columns(**{name: arguments.pop(name) for name in names})
    settings = Settings(columns=columns, **arguments)
    resources = Resources(device, threads, workers, where)
    if dry_run:
        planned = preview(model, list(inputs), out, settings, resources, force)
        output.json(planned)
        print_preview(output, planned)
    else:
        reranked = run_job(model, list(inputs), out, settings, resources, force)
        output.json(reranked)
        print_reranked(output, reranked)


def print_preview(output: Output, preview: Preview) -> None:
    from xopt.runtime.progress import clock

    output.line(
        f"{_count(preview.rows, 'pair')} of {_count(len(preview.inputs), 'input')}, "
        f"by {preview.variant}, to {preview.out}"
    )
    output.line(f"in {_count(preview.parts, 'part')}, each of which is written whole or not at all")
    if preview.gathered:
        output.line(
            f"{preview.gathered:,} rows are of queries whose candidates lie apart: "
            "they are written together first"
        )
    done = preview.rows - preview.rows_left
    if done:
        output.line(f"{done:,} pairs are done")
    output.line(
        f"{preview.pairs_s:,.0f} pairs a second in a sample, with one instance: "
        f"{clock(preview.seconds)} to go"
    )


def print_reranked(output: Output, reranked: Reranked) -> None:
    """Print what a job did: all of it and, if it was resumed, the part done now."""
    counts = reranked.counts
    output.line(
        f"{reranked.out}: {counts.written:,} rows of {counts.rows:,} pairs, by {reranked.variant}"
    )
    now = reranked.now
    rows = [_count_row("all", counts)]
    if 0 < reranked.parts_now < reranked.parts:
        rows.append(_count_row("now", now))
    if now.rows:
        rows[-1]["seconds"] = f"{reranked.seconds:,.1f}"
        rows[-1]["pairs/s"] = f"{now.rows / reranked.seconds:,.0f}"
    output.table("", rows)


def _count_row(name: str, counts: Counts) -> dict[str, str]:
    return {
        "": name,
        "pairs": f"{counts.rows:,}",
        "scored": f"{counts.scored:,}",
        "null text": f"{counts.null:,}",
        "not finite": f"{counts.not_finite:,}",
        "left out": f"{counts.skipped:,}",
        "cut": f"{counts.cut:,}",
        "tokens": f"{counts.tokens:,}",
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
