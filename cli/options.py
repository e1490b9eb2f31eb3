"""Options that several commands share."""

from __future__ import annotations

import click

__all__ = ["data_option", "folder_argument", "threads_option", "variant_option"]

folder_argument = click.argument("folder", metavar="DIR")
data_option = click.option(
    "--data",
    default="demo",
    show_default=True,
    help="Candidates: `demo`, a BEIR folder, or a .jsonl, .csv or .parquet file with the columns "
    "query_id, query, doc_id, text[, relevance].",
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads that a scorer may use.  [default: all cores]"
)
variant_option = click.option(
    "--variant", "variants", multiple=True, help="A variant; repeat for more.  [default: all in DIR]"
)
