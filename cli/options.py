"""Options that several commands share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from xopt.runtime.data.candidates import Candidates

__all__ = [
    "Number",
    "BOUNDS",
    "DATA_NAMES",
    "data_options",
    "device_anywhere_option",
    "device_option",
    "folder_argument",
    "gate_options",
    "minutes_option",
    "rank_label_option",
    "refuse",
    "threads_option",
    "trust_option",
    "variant_option",
]

folder_argument = click.argument("folder", metavar="DIR", type=click.Path())
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads that a scorer may use.  [default: all cores]",
)
variant_option = click.option(
    "--variant",
    "variants",
    multiple=True,
    help="A variant; repeat for more.  [default: all that fit the device]",
)


def _there(_: click.Context, __: click.Parameter, device: str) -> str:
    from xopt.runtime.scoring.device import check_device

    check_device(device)  # before data is read
    return device


def _device(check: Callable[..., str] | None) -> Callable[..., Any]:
    return click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        show_default=True,
        callback=check,
        help="Where to run; a GPU that is missing is an error, never a run on the CPU.",
    )


device_option = _device(_there)
device_anywhere_option = _device(None)  # where another machine may be the one to have it


class Number(click.FloatRange):
    """A number within bounds, which NaN is not."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return float(number)


minutes_option = click.option(
    "--minutes",
    type=Number(min=0, min_open=True),
    default=10,
    show_default=True,
    help="Draw no more queries for a verdict after so long; what is open then is undecided.",
)
rank_label_option = click.option(
    "--rank-label",
    metavar="LABEL",
    help="Of several labels the one that ranks, by name or number; A-B for the difference of two; or none.",
)
trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run code that comes with the model."
)
DATA = (
    click.option(
        "--data",
        default="demo",
        show_default=True,
        type=click.Path(),
        help="Candidates: `demo`, a BEIR folder, irds:ID (ir_datasets), hf:ID[:CONFIG] (datasets), or a .jsonl, .csv, "
        ".tsv or .parquet file, gzipped or not, with the columns query, text[, query_id, doc_id, relevance].",
    ),
    click.option(
        "--run",
        metavar="FILE",
        type=click.Path(),
        help="A TREC run with the candidates of a BEIR folder or an irds: dataset.  [default: BM25]",
    ),
    click.option("--split", help="The split of a BEIR folder or an hf: dataset.  [default: test]"),
    click.option(
        "--depth",
        type=click.IntRange(min=1),
        help="Candidates a query.  [default: 100 by --run or BM25]",
    ),
    click.option(
        "--queries", type=click.IntRange(min=1), help="Draw so many queries.  [default: all]"
    ),
)
GATES = (
    click.option(
        "--min-tau", type=Number(-1, 1), help="Gate: mean Kendall tau-b at least.  [default: 0.93]"
    ),
    click.option(
        "--min-top10",
        type=Number(0, 1),
        help="Gate: mean top-10 overlap at least.  [default: 0.90]",
    ),
    click.option(
        "--max-dcg-loss",
        type=Number(0, 1),
        help="Gate: loss of DCG@10 at most, gains by the reference's scores.  [default: 0.01]",
    ),
    click.option(
        "--max-ndcg-drop",
        type=float,
        help="Gate: loss of nDCG@10 by qrels at most. Given, it has to be shown; else a shown loss over 0.005 fails.",
    ),
    click.option(
        "--min-labels",
        type=Number(0, 1),
        help="Gate: same labels at least, of several.  [default: 0.98]",
    ),
)
DATA_NAMES = ("data", "run", "split", "depth", "queries")
BOUNDS = {
    "min_tau": "tau",
    "min_top10": "top10",
    "max_dcg_loss": "dcg10_loss",
    "max_ndcg_drop": "ndcg10_drop",
    "min_labels": "labels",
}


def refuse(options: Sequence[str], why: str) -> None:
    """Raise click.UsageError where one of these options was given on the command line."""
    source = click.get_current_context().get_parameter_source
    given = [name for name in options if source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(f"--{given[0].replace('_', '-')} {why}")


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--data and what goes with it; the command gets `read`, which reads the candidates."""

    @functools.wraps(command)
    def with_data(
        data: str,
        run: str | None,
        split: str | None,
        depth: int | None,
        queries: int | None,
        **rest: Any,
    ) -> Any:
        def read(first: str | None = None, documents: bool = False) -> Candidates:
            from xopt.runtime.data.candidates import read_candidates
            from xopt.runtime.data.columns import Columns

            return read_candidates(
                data,
                run=run,
                split=split,
                depth=depth,
                queries=queries,
                columns=Columns(first=first),
                documents=documents,
            )

        return command(read=read, **rest)

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(DATA), with_data)


def gate_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The gates' bounds; the command gets `bounds`, those that were given, by measure."""

    @functools.wraps(command)
    def with_bounds(**given: Any) -> Any:
        bounds = {measure: given.pop(option) for option, measure in BOUNDS.items()}
        return command(
            bounds={measure: bound for measure, bound in bounds.items() if bound is not None},
            **given,
        )

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(GATES), with_bounds)
