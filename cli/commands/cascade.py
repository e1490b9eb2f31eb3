"""`xopt cascade`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xopt.cli.cascade_tables import print_certified, print_checked
from xopt.cli.options import (
    Number,
    data_options,
    device_option,
    folder_argument,
    refuse,
    threads_option,
    trust_option,
)
from xopt.cli.output import Output, json_option

if TYPE_CHECKING:
    from xopt.runtime.data.candidates import Candidates

__all__ = ["cascade"]

MAKING = ("variant", "first", "top", "max_loss", "confidence", "in_expectation", "measure")
VERDICT_CODES = {"pass": 0, "fail": 1, "undecided": 3}


@click.command()
@folder_argument
@data_options
@click.option(
    "--first",
    metavar="given|learned|DIR|COLUMN",
    help="What orders a query's candidates: the first stage (`given`), a regression from their words (`learned`), "
    "a cheaper model's folder; or the column of DATA with the first stage's scores, which those go by too.  [default: "
    "the cheaper one of given and learned]",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="The ranks that count."
)
@click.option(
    "--max-loss",
    type=Number(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="The expected loss that is allowed, against scoring everything with the reference.",
)
@click.option(
    "--confidence",
    type=Number(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="With which the loss is shown to be no larger, on queries like these.",
)
@click.option(
    "--in-expectation",
    is_flag=True,
    help="Promise less, with a third of the queries: the expected loss, over what is drawn to certify by too.",
)
@click.option(
    "--measure",
    type=click.Choice(["dcg", "top"]),
    default="dcg",
    show_default=True,
    help="What is lost: a share of DCG, gains by the reference's scores; or of so many queries the best are not all "
    "scored.",
)
@click.option(
    "--variant",
    help="What scores.  [default: the recommended one, else onnx-int8, onnx-fp32 or torch-fp32]",
)
@click.option(
    "--check",
    "checking",
    is_flag=True,
    help="Does the certificate in DIR hold on DATA? Changes nothing.",
)
@threads_option
@device_option
@trust_option
@json_option
def cascade(
    folder: str,
    read: Callable[..., Candidates],
    first: str | None,
    top: int,
    max_loss: float,
    confidence: float,
    in_expectation: bool,
    measure: str,
    variant: str | None,
    checking: bool,
    threads: int | None,
    device: str,
    trust_remote_code: bool,
    json_file: str | None,
) -> None:
    """Rank with fewer pairs, and certify what that loses.

    Finds the cheapest order of a query's candidates, and the cheapest rule when to stop, whose
    expected loss on unseen queries is shown to be at most --max-loss, and writes both with their
    certificate into DIR: `open_cascade(DIR)` and `rerank(..., cascade=True)` rank by them. Needs
    no labels. Exits with 1 where no saving is safe; with --check as `validate` does.
    """
    from xopt.optimize.cascade.certify import certify
    from xopt.optimize.cascade.check import check
    from xopt.optimize.cascade.parts import ORDERS, default_variant
    from xopt.runtime.cascade.cascade import Cascade
    from xopt.runtime.errors import BadInput
    from xopt.runtime.folder import MANIFEST, ModelFolder

    output, model = Output(json_file), ModelFolder.open(folder, trust_remote_code)
    if checking:
        refuse(MAKING, "is for making a cascade, and --check changes nothing")
        kept = Cascade.of(model).certificate
        checked = check(model, read(first=kept.column), threads, device)
        output.json(checked)
        print_checked(output, checked)
        code = VERDICT_CODES[checked.result.verdict]
    else:
        if in_expectation:
            refuse(("confidence",), "has no meaning in expectation")
        own = first in (None, *ORDERS) or (Path(str(first)) / MANIFEST).is_file()
        if not own and Path(str(first)).is_dir():
            raise BadInput(
                f"--first {first}: no model folder; make one with `xopt export {first} -o SMALL`"
            )
        column = None if own else first
        chosen = variant or default_variant(model, device)
        certified = certify(
            model,
            read(first=column),
            chosen,
            first=first if own else None,
            column=column,
            top=top,
            max_loss=max_loss,
            confidence=None if in_expectation else confidence,
            measure=measure,
            threads=threads,
            device=device,
        )
        output.json(certified)
        print_certified(output, certified)
        code = 0 if certified.cascade else 1
    if code:
        raise SystemExit(code)
