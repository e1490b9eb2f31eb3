"""Does a certificate still hold? The cascade, run on new queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xopt.optimize.cascade.parts import distinct, lists_of, told
from xopt.optimize.judge.statistics import Gate, GateResult, Interval, hold, interval
from xopt.optimize.validate import EXACT_VARIANT, Reference
from xopt.runtime.cascade.cascade import Certificate, cheaper_of, open_cascade
from xopt.runtime.cascade.loss import lost
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores

__all__ = ["Checked", "check", "gate_of"]

# What one query more may lose where few have lost anything, see `Gate`: of DCG the worst ones
# lose a third.
UNSEEN = {"dcg": 1 / 3, "top": 1.0}


@dataclass(frozen=True)
class Checked:
    """A certificate on queries that it has not seen: its loss held against its bound, and the
    pairs scored.
    """

    folder: str
    data: str
    certificate: Certificate
    queries: int
    seen: int
    result: GateResult
    share: Interval


def check(
    folder: ModelFolder, candidates: Candidates, threads: int | None = None, device: str = "cpu"
) -> Checked:
    """Run the cascade on new queries and hold its loss against what was certified.

    The verdict is that of a gate: "pass" where the loss is shown to be as small, "fail" where it
    is shown to be larger, else "undecided". Queries that chose or certified, calibrated or
    trained are left out. Raises BadInput where there is no cascade, or no query is left.
    """
    threads = threads or cores()
    scorer = open_cascade(folder, threads=threads, device=device)
    certificate = scorer.cascade.certificate
    order = scorer.cascade.order
    cheaper = cheaper_of(folder, order) if order.model else None
    new = distinct(candidates).without(
        {*certificate.seen, *told(folder, scorer.cascade.variant, cheaper)}
    )
    if not new.rows:
        raise BadInput(
            f"{candidates.name}: all its queries were seen when the cascade was made; give other data"
        )
    groups = list(new.groups().values())
    expected = Reference(folder, new, EXACT_VARIANT, threads, device).of(len(groups))
    ranked = scorer.rank_all(lists_of(new))
    losses = [
        lost(
            expected[rows],
            each.ranking,
            np.isfinite(each.scores),
            certificate.top,
            certificate.measure,
        )
        for rows, each in zip(groups, ranked, strict=True)
    ]
    return Checked(
        folder=str(folder.path),
        data=candidates.name,
        certificate=certificate,
        queries=len(groups),
        seen=len(candidates.groups()) - len(groups),
        result=hold(gate_of(certificate), np.array(losses), same=False),
        share=interval(np.array([each.scored / len(each.scores) for each in ranked])),
    )


def gate_of(certificate: Certificate) -> Gate:
    """What new queries' losses are held against."""
    return Gate("loss", certificate.max_loss, at_most=True, unseen=UNSEEN[certificate.measure])
