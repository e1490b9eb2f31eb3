"""`xopt rerank`"""

from __future__ import annotations

from typing import Any

import click

from xopt.cli.job_tables import print_preview, print_reranked
from xopt.cli.options import device_anywhere_option, folder_argument, threads_option, trust_option
from xopt.cli.output import Output, json_option

__all__ = ["rerank"]

COLUMNS = ("query", "text", "query_id", "doc_id", "first")


@click.command()
@folder_argument
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
    help="The variant that scores.  [default: the one recommended on this machine, or onnx-fp32]",
)
@click.option(
    "--cascade",
    is_flag=True,
    help="Rank by DIR's cascade; rows that it leaves out have a null score.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), help="Each query's best only.  [default: every row]"
)
@click.option("--ids-only", is_flag=True, help="Write ids, score and rank, and no other columns.")
@click.option(
    "--query", metavar="COLUMN", default="", help="The queries' column.  [default: query]"
)
@click.option(
    "--text",
    metavar="COLUMN",
    help="The documents' column.  [default: text, below title if there is one]",
)
@click.option(
    "--query-id", metavar="COLUMN", help="The queries' ids.  [default: query_id, or the query]"
)
@click.option("--doc-id", metavar="COLUMN", help="The documents' ids.  [default: doc_id, if there]")
@click.option(
    "--first", metavar="COLUMN", help="The first stage's scores, for a cascade made with them."
)
@click.option(
    "--score",
    metavar="NAME",
    default="score",
    show_default=True,
    help="The column of scores to write.",
)
@click.option(
    "--rank",
    metavar="NAME",
    default="rank",
    show_default=True,
    help="The column of ranks to write.",
)
@click.option(
    "--run",
    metavar="FILE",
    type=click.Path(),
    help="A TREC run with the candidates of a BEIR folder or an irds: dataset.  [default: BM25]",
)
@click.option("--split", help="The split of a BEIR folder or an hf: dataset.  [default: test]")
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    help="Candidates a query of a BEIR folder or an irds: dataset.  [default: 100]",
)
@device_anywhere_option
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="So many processes, on Ray actors, with a GPU each on cuda.  [default: one instance; on Ray one a node]",
)
@threads_option
@click.option(
    "--where",
    metavar="native|ray|ADDRESS",
    default="native",
    show_default=True,
    help="This machine, Ray's cluster here, or the Ray cluster at an address.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Say what would be done, and by a sample how long it would take.",
)
@click.option("--force", is_flag=True, help="Begin again, and replace OUT.")
@trust_option
@json_option
def rerank(
    folder: str,
    inputs: tuple[str, ...],
    out: str,
    device: str,
    workers: int | None,
    threads: int | None,
    where: str,
    dry_run: bool,
    force: bool,
    trust_remote_code: bool,
    json_file: str | None,
    **asked: Any,
) -> None:
    """Rank files of candidates, millions of pairs if need be, and go on after any fault.

    INPUTs are Parquet, .jsonl, .csv or .tsv files, folders or patterns of them, on this machine
    or a store (s3://, gs://, https://, ...), or collections: BEIR folders, irds:ID, hf:ID. Each
    row comes out once, with its score, a logit, and its rank. What was done stands in OUT.job:
    the same command goes on where it was, and where all is done it scores nothing.
    """
    from xopt.runtime.data.columns import Columns
    from xopt.runtime.folder import ModelFolder
    from xopt.runtime.jobs.request import Resources, Settings
    from xopt.runtime.jobs.rerank_files import preview, run_job

    output, model = Output(json_file), ModelFolder.open(folder, trust_remote_code)
    columns = Columns(title=None, **{name: asked.pop(name) for name in COLUMNS})
    job, how = Settings(columns=columns, **asked), Resources(device, threads, workers, where)
    if dry_run:
        seen = preview(model, list(inputs), out, job, how, force)
        output.json(seen)
        print_preview(output, seen)
        return
    made = run_job(model, list(inputs), out, job, how, force)
    output.json(made)
    print_reranked(output, made)
