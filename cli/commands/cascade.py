"""`xopt cascade`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xopt.cli import options
from xopt.cli.output import Output, interval_text, json_option

if TYPE_CHECKING:
    from xopt.optimize.cascade.certify import Certified
    from xopt.optimize.cascade.check import Checked
    from xopt.optimize.judge.statistics import Interval
    from xopt.runtime.cascade.cascade import Cascade, Certificate
    from xopt.runtime.folder import ModelFolder

__all__ = ["cascade", "print_certified", "print_checked"]

EXAMPLES = """\b
Examples:
  xopt cascade models/minilm --data candidates.jsonl
  xopt cascade models/minilm --data new-candidates.jsonl --check
"""

MAKING = ("variant", "first", "top", "max_loss", "confidence", "in_expectation", "measure")
EXIT_CODES = {"pass": 0, "fail": 1, "undecided": 3}
ORDER_TEXTS = {
    "given": "the first stage's order",
    "learned": "a learned order",
    "model": "a cheaper model's order",
}
VERDICT_TEXTS = {
    "pass": "The certificate holds",
    "fail": "VIOLATED: the certificate does not hold",
    "undecided": "Undecided",
}


@click.command(epilog=EXAMPLES)
@options.model_folder
@options.data
@click.option(
    "--first",
    metavar="given|learned|DIR|COLUMN",
    help="What orders a query's candidates: the first stage (`given`), a regression from their "
    "words (`learned`), or a cheaper model's folder. Or the column of DATA with the first stage's "
    "scores, which `given` and `learned` then use.  [default: the cheaper of given and learned]",
)
@click.option(
    "--top", type=options.AT_LEAST_1, metavar="K", default=10, help="The ranks that count."
)
@click.option(
    "--max-loss",
    type=options.Number(0, 1, min_open=True, max_open=True),
    metavar="D",
    default=0.01,
    help="The expected loss to allow, against scoring everything with the reference.",
)
@click.option(
    "--confidence",
    type=options.Number(0, 1, min_open=True, max_open=True),
    metavar="C",
    default=0.95,
    help="The confidence that the loss is no larger on queries like these.",
)
@click.option(
    "--in-expectation",
    is_flag=True,
    help="Promise less, with a third of the queries: the expected loss, also over the draw of the "
    "queries that certify.",
)
@click.option(
    "--measure",
    type=click.Choice(["dcg", "top"]),
    default="dcg",
    help="What is lost. `dcg`: a share of DCG, with gains from the reference's scores. `top`: the "
    "share of queries whose best documents are not all scored.",
)
@click.option(
    "--variant",
    metavar="NAME",
    help="What scores.  [default: the recommended one, else onnx-int8, onnx-fp32 or torch-fp32]",
)
@click.option(
    "--check",
    "checking",
    is_flag=True,
    help="Check whether the certificate in DIR holds on DATA, and change nothing.",
)
@options.threads
@options.device
@options.trust
@json_option
def cascade(
    model: ModelFolder,
    read: options.ReadCandidates,
    first: str | None,
    confidence: float,
    in_expectation: bool,
    variant: str | None,
    checking: bool,
    threads: int | None,
    device: str,
    output: Output,
    **limits: Any,
) -> None:
    """Rank with fewer pairs, and certify what that loses.

    Finds the cheapest order of a query's candidates, and the cheapest rule when to stop, without
    labels. The expected loss on unseen queries is at most --max-loss. Both go into DIR, certified.

    If no saving is safe, the command exits with 1 and changes nothing. With --check, it exits with
    0 if the certificate holds, 1 if it is violated, and 3 if the queries are too few to tell.
    """
    from xopt.optimize.cascade.certify import certify
    from xopt.optimize.cascade.parts import variant_to_certify

    if checking:
        _check(model, read, threads, device, output)
    order = _order(first)
    certified = certify(
        model,
        read(first=order["column"]),
        variant or variant_to_certify(model, device),
        **order,
        confidence=_confidence(confidence, in_expectation),
        threads=threads,
        device=device,
        **limits,
    )
    output.json(certified)
    print_certified(output, certified)
    click.get_current_context().exit(0 if certified.cascade else 1)


def _confidence(confidence: float, in_expectation: bool) -> float | None:
    """Return with which confidence the bound holds, None for a bound in expectation."""
    if in_expectation:
        options.refuse(("confidence",), "has no meaning with --in-expectation")
        return None
    return confidence


def _check(
    model: ModelFolder,
    read: options.ReadCandidates,
    threads: int | None,
    device: str,
    output: Output,
) -> None:
    """Check the cascade of a folder on other queries, and exit with the verdict."""
    from xopt.optimize.cascade.check import check
    from xopt.runtime.cascade.cascade import Cascade

    options.refuse(MAKING, "is for making a cascade, and --check changes nothing")
    candidates = read(first=Cascade.of(model).certificate.column)
    checked = check(model, candidates, threads, device)
    output.json(checked)
    print_checked(output, checked)
    click.get_current_context().exit(EXIT_CODES[checked.result.verdict])


def _order(first: str | None) -> dict[str, Any]:
    """Tell whether --first is an order or model folder, or a column; the other one is None."""
    from xopt.optimize.cascade.parts import ORDERS
    from xopt.runtime.errors import BadInput
    from xopt.runtime.folder import MANIFEST

    if first is None or first in ORDERS or (Path(first) / MANIFEST).is_file():
        return {"first": first, "column": None}
    if Path(first).is_dir():
        raise BadInput(
            f"--first {first}: no model folder; make one with `xopt export {first} -o SMALL`"
        )
    return {"first": None, "column": first}


def print_certified(output: Output, certified: Certified) -> None:
    if certified.cascade is None:
        output.line(
            "Score everything: nothing cheaper is shown to be safe. "
            f"{certified.variant} alone loses {certified.variant_loss:.4f}. Give more queries than "
            f"these {certified.pairs:,} pairs have, or allow more with --max-loss. Do so on other "
            "queries, since each further try on the same ones may err too."
        )
    else:
        _print_cascade(output, certified, certified.cascade)
    output.line("")
    rows = []
    for option in sorted(certified.options, key=lambda option: option.cost):
        row = {
            "order and rule": f"{ORDER_TEXTS[option.order]}, by {option.rule}",
            "pairs scored": f"{100 * option.share:.0f} %",
            "with the first stage's time": f"{100 * option.cost:.0f} %",
        }
        rows.append(row)
    output.table("tried, on the queries that choose", rows)


def _print_cascade(output: Output, certified: Certified, found: Cascade) -> None:
    certificate = found.certificate
    output.line(
        f"Scores {_percent(certified.share)} of the pairs, in {ORDER_TEXTS[found.order.kind]}, "
        f"{_rule_text(found)}; by {certified.variant}."
    )
    output.line(f"Certificate: {_promise_text(certificate)}.")
    if certificate.first_stage == "demo":
        output.line(
            "Those are docstrings, the built-in data, and say nothing of your own queries; "
            "give --data."
        )
    output.line(
        f"On the {certificate.queries} queries that certified it, it lost {certificate.loss:.4f}, "
        f"of which {certified.variant} by itself lost {certified.variant_loss:.4f}. "
        f"{certified.chosen_with} other queries chose it."
    )
    output.line(f"    from xopt import open_cascade; {certified.python}")


def print_checked(output: Output, checked: Checked) -> None:
    result = checked.result
    output.line(
        f"{VERDICT_TEXTS[result.verdict]} on {checked.data}: "
        f"a loss of {interval_text(result.interval, digits=4)} on {checked.queries} queries, "
        f"{_percent(checked.share)} of whose pairs were scored. "
        f"Certified: {_promise_text(checked.certificate)}."
    )
    if checked.seen:
        output.line(f"{checked.seen} queries made the cascade or what it runs, and are left out.")
    if result.verdict == "undecided" and result.queries_needed:
        output.line(f"About {result.queries_needed:,} queries like these would decide.")
    if result.verdict == "fail":
        output.line(
            f"Make it again on queries like these: xopt cascade {checked.folder} --data DATA"
        )


def _percent(share: Interval) -> str:
    return f"{100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _promise_text(certificate: Certificate) -> str:
    top = certificate.top
    max_loss = certificate.max_loss
    if certificate.measure == "dcg":
        lost = (
            f"at most {max_loss:g} of DCG@{top} is lost in the mean, "
            "against scoring everything in FP32"
        )
    else:
        lost = (
            f"the best {top} in FP32 are all scored, but for a share of {max_loss:g} of the queries"
        )
    confidence = "in expectation"
    if certificate.confidence is not None:
        confidence = f"with a confidence of {certificate.confidence:g}"
    return (
        f"on queries like those of {certificate.first_stage}, "
        f"{certificate.depth:.0f} candidates each, {lost}, {confidence}"
    )


def _rule_text(found: Cascade) -> str:
    value = found.rule.value
    top = found.certificate.top
    if found.rule.kind == "depth":
        return f"the first {value:.0f} of each query"
    if found.rule.kind == "score":
        return (
            f"those with a predicted logit of {value:.2f} or more, and the first {top} in any case"
        )
    if found.certificate.measure == "top":
        return (
            f"until one of the others is among the best {top} with a probability under {value:.2g}"
        )
    return f"until the others are expected to add under {value:.2g} to the best {top}"
