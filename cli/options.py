"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from xopt.runtime.data.candidates import Candidates

__all__ = [
    "AT_LEAST_1",
    "COLUMN_OPTIONS",
    "DATA_OPTIONS",
    "GATES",
    "Number",
    "ReadCandidates",
    "columns",
    "data",
    "device",
    "gates",
    "minutes",
    "model",
    "model_folder",
    "model_out",
    "rank_label",
    "refuse",
    "run",
    "split",
    "threads",
    "trust",
    "unchecked_device",
    "variants",
]

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

AT_LEAST_1 = click.IntRange(min=1)
COLUMN_OPTIONS = ("query", "text", "query_id", "doc_id")
DATA_OPTIONS = ("data", "run", "split", "depth", "queries", *COLUMN_OPTIONS)
GATES = {  # each option's parameter, and the measure that it bounds
    "min_tau": "tau",
    "min_top10": "top10",
    "max_dcg_loss": "dcg10_loss",
    "max_ndcg_drop": "ndcg10_drop",
    "min_labels": "labels",
}


class Number(click.FloatRange):
    """A number in a range. NaN is refused, which click lets through."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


class ReadCandidates(Protocol):
    """Reads the candidates that --data and its options name; see `read_candidates`."""

    def __call__(self, *, first: str | None = None, documents: bool = False) -> Candidates: ...


def _check_device(_: click.Context, __: click.Parameter, device: str) -> str:
    from xopt.runtime.scoring.device import check_device

    check_device(device)  # before data is read
    return device


def _device_option(check: Callable[..., str] | None) -> Decorator:
    return click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        default="cpu",
        callback=check,
        help="Where to run. A missing GPU is an error, never a run on the CPU.",
    )


model = click.argument("model", type=click.Path())
model_out = click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The model folder to write.  [default: models/NAME-xopt]",
)
device = _device_option(_check_device)
# for `rerank`: on a cluster, another machine may be the one with the GPU
unchecked_device = _device_option(None)
minutes = click.option(
    "--minutes",
    type=Number(min=0, min_open=True),
    metavar="M",
    default=10,
    help="Draw no more queries for a verdict after this time. What is open then is undecided.",
)
rank_label = click.option(
    "--rank-label",
    metavar="LABEL",
    help="The label that ranks, for a model of several: its name or number, A-B for the "
    "difference of two, or `none`.",
)
run = click.option(
    "--run",
    metavar="FILE",
    type=click.Path(),
    help="TREC run with the candidates of a BEIR folder or an `irds:` dataset.  "
    "[default: the dataset's own scored documents, or BM25]",
)
split = click.option(
    "--split",
    metavar="NAME",
    help="Split of a BEIR folder or an `hf:` dataset.  [default: test]",
)
threads = click.option(
    "--threads",
    type=AT_LEAST_1,
    metavar="N",
    help="Threads that a scorer, its tokenizer and a cascade may use.  [default: all cores]",
)
trust = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run code that comes with the model. Without this it never runs.",
)
variants = click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    help="A variant of DIR. Repeat the option for more.  [default: all that fit the device]",
)
_data_options = (
    click.option(
        "--data",
        default="demo",
        type=click.Path(),
        metavar="DATA",
        help="Candidates: `demo`, a BEIR folder, `irds:ID` (ir_datasets), `hf:ID[:CONFIG]` "
        "(datasets), or a table. A table is a .jsonl, .csv, .tsv or .parquet file, a folder or a "
        "pattern of them, here or on a store. Its columns are query, text and, where you have "
        "them, title, query_id, doc_id and relevance.",
    ),
    run,
    split,
    click.option(
        "--depth",
        type=AT_LEAST_1,
        metavar="N",
        help="Candidates per query.  [default: 100 by --run or BM25, else all]",
    ),
    click.option(
        "--queries",
        type=AT_LEAST_1,
        metavar="N",
        help="Draw this many queries, always the same ones.  [default: all]",
    ),
)
_column_options = (
    click.option(
        "--query",
        metavar="COLUMN",
        default="",
        show_default=False,
        help="The column of queries.  [default: query]",
    ),
    click.option(
        "--text",
        metavar="COLUMN",
        help="The column of documents.  [default: text, below title if there is one]",
    ),
    click.option(
        "--query-id",
        metavar="COLUMN",
        help="The column of query ids.  [default: query_id, or the query]",
    ),
    click.option(
        "--doc-id",
        metavar="COLUMN",
        help="The column of document ids.  [default: doc_id, if there is one]",
    ),
)
_gate_options = (
    click.option(
        "--min-tau",
        type=Number(-1, 1),
        metavar="T",
        help="Gate: mean Kendall tau-b at least.  [default: 0.93]",
    ),
    click.option(
        "--min-top10",
        type=Number(0, 1),
        metavar="S",
        help="Gate: mean top-10 overlap at least.  [default: 0.90]",
    ),
    click.option(
        "--max-dcg-loss",
        type=Number(0, 1),
        metavar="D",
        help="Gate: loss of DCG@10 at most, with gains from the reference's scores.  "
        "[default: 0.01]",
    ),
    click.option(
        "--max-ndcg-drop",
        type=float,
        metavar="D",
        help="Gate: loss of nDCG@10 by qrels at most, which has to be shown. "
        "If it is not given, only a shown loss over 0.005 fails.",
    ),
    click.option(
        "--min-labels",
        type=Number(0, 1),
        metavar="S",
        help="Gate: share of pairs with the reference's label at least, for models of several "
        "labels.  [default: 0.98]",
    ),
)


def refuse(options: Sequence[str], why: str) -> None:
    """Raise click.UsageError if one of these options was given on the command line."""
    context = click.get_current_context()
    for param in context.command.params:
        given = context.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
        if param.name in options and given:
            raise click.UsageError(f"{max(param.opts, key=len)} {why}")


def model_folder(command: Function) -> Function:
    """Add the argument DIR; the command gets `model`: ModelFolder, opened."""

    @functools.wraps(command)
    def with_model(folder: str, trust_remote_code: bool = False, **arguments: Any) -> Any:
        from xopt.runtime.folder import ModelFolder

        return command(model=ModelFolder.open(folder, trust_remote_code), **arguments)

    return click.argument("folder", metavar="DIR", type=click.Path())(with_model)


def data(command: Function) -> Function:
    """Add --data and the options that go with it; the command gets `read`: ReadCandidates."""

    @functools.wraps(command)
    def with_read(**arguments: Any) -> Any:
        columns = {name: arguments.pop(name) for name in COLUMN_OPTIONS}
        source = {name: arguments.pop(name) for name in DATA_OPTIONS if name in arguments}

        def read(*, first: str | None = None, documents: bool = False) -> Candidates:
            from xopt.runtime.data.candidates import read_candidates
            from xopt.runtime.data.columns import Columns

            named = Columns(**columns, first=first)
            return read_candidates(**source, columns=named, documents=documents)

        return command(read=read, **arguments)

    return _with_options((*_data_options, *_column_options), with_read)


def columns(command: Function) -> Function:
    """Add the options that name columns; the command gets them under their own names."""
    return _with_options(_column_options, command)


def gates(command: Function) -> Function:
    """Add the gates; the command gets `bounds`, those that were given, by measure."""

    @functools.wraps(command)
    def with_bounds(**arguments: Any) -> Any:
        bounds = {}
        for name, measure in GATES.items():
            bound = arguments.pop(name)
            if bound is not None:
                bounds[measure] = bound
        return command(bounds=bounds, **arguments)

    return _with_options(_gate_options, with_bounds)


def _with_options(options: Sequence[Decorator], command: Function) -> Function:
    for option in reversed(options):  # as stacked decorators apply, from below
        command = option(command)
    return command
