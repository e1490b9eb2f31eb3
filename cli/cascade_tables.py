"""What `xopt cascade` and `xopt shrink` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xopt.cli.output import Output

if TYPE_CHECKING:
    from xopt.optimize.cascade.certify import Certified
    from xopt.optimize.cascade.check import Checked
    from xopt.optimize.judge.statistics import Interval
    from xopt.optimize.shrink.shrink import Shrunk
    from xopt.runtime.bench.bench import Bench
    from xopt.runtime.cascade.cascade import Certificate
    from xopt.runtime.cascade.rule import Rule

__all__ = ["print_cascaded", "print_certified", "print_checked", "print_shrunk"]

ORDERS = {
    "given": "the first stage's order",
    "learned": "a learned order",
    "model": "a cheaper model's order",
}
VERDICTS = {
    "pass": "The certificate holds",
    "fail": "VIOLATED: the certificate does not hold",
    "undecided": "Undecided",
}


def print_certified(out: Output, found: Certified) -> None:
    """What is certified, in words, and what was tried."""
    if found.cascade is None:
        out.line(
            f"Score everything: nothing cheaper is shown to be safe. {found.variant} alone loses "
            f"{found.variant_loss:.4f}; give more queries than these {found.pairs:,} pairs have, or allow more with "
            "--max-loss: on other queries, since each further try on the same ones may err too."
        )
    else:
        own, order = found.cascade.certificate, ORDERS[found.cascade.order.kind]
        out.line(
            f"Scores {_percent(found.share)} of the pairs, in {order}, {_rule(found.cascade.rule, own)}; by "
            f"{found.variant}."
        )
        out.line(f"Certificate: {_promise(own)}.")
        if own.first_stage == "demo":
            out.line(
                "Those are docstrings, the built-in data: of your own queries it says nothing; give --data."
            )
        out.line(
            f"On the {own.queries} queries that certified it lost {own.loss:.4f}, of which {found.variant} by itself "
            f"{found.variant_loss:.4f}. {found.chosen_with} others chose."
        )
        out.line(f"    from xopt.runtime import open_cascade; {found.python}")
    out.line("")
    rows = [
        [
            f"{ORDERS[option.order]}, by {option.rule}",
            f"{100 * option.share:.0f} %",
            f"{100 * option.cost:.0f} %",
        ]
        for option in sorted(found.options, key=lambda option: option.cost)
    ]
    columns = ["order and rule", "pairs scored", "with the first stage's time"]
    out.table("tried, on the queries that choose", columns, rows)


def print_checked(out: Output, found: Checked) -> None:
    """Whether a certificate holds on new queries."""
    result, loss = found.result, found.result.interval
    out.line(
        f"{VERDICTS[result.verdict]} on {found.data}: a loss of {loss.mean:.4f} [{loss.low:.4f}, {loss.high:.4f}] on "
        f"{found.queries} queries, {_percent(found.share)} of whose pairs were scored. Certified: "
        f"{_promise(found.certificate)}."
    )
    if found.seen:
        out.line(f"{found.seen} queries made the cascade or what it runs, and are left out.")
    if result.verdict == "undecided" and result.queries_needed:
        out.line(f"About {result.queries_needed:,} queries like these would decide.")
    if result.verdict == "fail":
        out.line(f"Make it again on queries like these: xopt cascade {found.folder} --data DATA")


def print_cascaded(out: Output, bench: Bench) -> None:
    """What a cascade scored and lost in a bench, and how much faster it was than scoring
    everything.
    """
    from xopt.optimize.judge.statistics import interval

    planned = {
        m.case.variant: m.pairs_per_s for m in bench.measured if m.case.strategy == "planned"
    }
    for m in bench.measured:
        if m.cascaded is not None:
            loss, everything = interval(np.array(m.cascaded.losses)), planned.get(m.case.variant)
            faster = (
                f", {m.pairs_per_s / everything:.2f} times {m.case.variant}/planned"
                if everything
                else ""
            )
            lost = f"{loss.mean:.4f} [{loss.low:.4f}, {loss.high:.4f}] on {loss.queries} queries"
            lost += f", {m.cascaded.seen} of which made the cascade" if m.cascaded.seen else ""
            out.line(
                f"{m.case}: {100 * m.cascaded.share:.0f} % of the pairs scored{faster}; loss against FP32 {lost}."
            )


def print_shrunk(out: Output, found: Shrunk) -> None:
    """What was kept, how it was trained, and how far it ranks as the larger model does."""
    done = found.distilled
    names = {
        "tau": "tau-b",
        "top10": "top-10",
        "dcg10_loss": "DCG loss",
        "ndcg10": "nDCG@10",
        "full_ndcg10": "of DIR",
    }
    measures = {names[name]: value for name, value in found.measures.items()}
    row = [
        ", ".join(str(layer + 1) for layer in found.kept),
        f"{done.pairs:,}",
        f"{done.seconds / 60:.1f}",
        f"{found.untrained:.3f}",
        *(f"{value.mean:.3f}\n[{value.low:.3f}, {value.high:.3f}]" for value in measures.values()),
    ]
    title = f"{found.folder}: {len(found.kept)} of {found.layers} layers of {found.source}, on {found.queries} queries"
    title += " that it has not learned from"
    out.table(
        title, ["layers", "pairs", "minutes", "tau-b untrained", *measures], [row], left=("layers",)
    )
    out.line(
        f"Next: xopt quantize {found.folder} --int8; then validate it as any model, or, on queries that it has not "
        f"learned from, xopt cascade {found.source} --first {found.folder} --data DATA"
    )


def _percent(share: Interval) -> str:
    return f"{100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _promise(own: Certificate) -> str:
    lost = {
        "dcg": f"at most {own.max_loss:g} of DCG@{own.top} is lost in the mean, against scoring everything in FP32",
        "top": f"the best {own.top} in FP32 are all scored, but for a share of {own.max_loss:g} of the queries",
    }[own.measure]
    how = "in expectation" if own.confidence is None else f"with a confidence of {own.confidence:g}"
    return f"on queries like those of {own.first_stage}, {own.depth:.0f} candidates each, {lost}, {how}"


def _rule(rule: Rule, own: Certificate) -> str:
    if rule.kind == "depth":
        return f"the first {rule.value:.0f} of each query"
    if rule.kind == "score":
        return f"those with a predicted logit of {rule.value:.2f} or more, and the first {own.top} in any case"
    if own.measure == "top":
        return f"until one of the others is among the best {own.top} with a probability under {rule.value:.2g}"
    return f"until the others are expected to add under {rule.value:.2g} to the best {own.top}"
