"""Checks a certificate: the cascade, run on new queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xopt.optimize.cascade.parts import (
    candidate_lists,
    preparing_queries,
    without_repeated_queries,
)
from xopt.optimize.judge.statistics import Gate, GateResult, Interval, hold, interval
from xopt.optimize.validate import EXACT_VARIANT, Reference
from xopt.runtime.cascade.cascade import Certificate, find_cheaper_model, open_cascade
from xopt.runtime.cascade.loss import CascadeLosses
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.progress import progress

__all__ = ["Checked", "certificate_gate", "check"]

# What a query may lose if few have lost anything, see `Gate`.
# Of DCG the worst lose a third.
WORST_LOSS = {"dcg": 1 / 3, "top": 1.0}


@dataclass(frozen=True)
class Checked:
    """A certificate held against queries that it has not seen.

    seen: how many queries were left out.
    share: of a query's pairs, those scored.
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

    The verdict is "pass" if the loss is shown to be as small, "fail" if larger, else
    "undecided". Queries that made the cascade or its models are left out.
    Raises BadInput if there is no cascade, or no query is left.
    """
    threads = threads or cores()
    scorer = open_cascade(folder, threads=threads, device=device)
    cascade = scorer.cascade
    seen = {*cascade.certificate.seen, *preparing_queries(folder, cascade.variant)}
    if cascade.order.model:
        seen |= preparing_queries(*find_cheaper_model(folder, cascade.order))
    new = without_repeated_queries(candidates).without(seen)
    if not new.rows:
        raise BadInput(
            f"{candidates.name}: all its queries were seen by the cascade; give other data"
        )
    queries = len(new.groups())
    with progress("cascade --check", total=2, unit="steps") as step:
        step.begin(f"the reference scores {queries} queries")
        reference = Reference(folder, new, EXACT_VARIANT, threads, device).of(queries)
        step.begin("the cascade ranks them")
        scores = [ranked.scores for ranked in scorer.rank_all(candidate_lists(new))]
    losses = CascadeLosses.of(cascade, new, reference, np.concatenate(scores)).losses
    shares = [np.isfinite(each).mean() for each in scores]
    return Checked(
        folder=str(folder.path),
        data=candidates.name,
        certificate=cascade.certificate,
        queries=queries,
        seen=len(candidates.groups()) - queries,
        result=hold(certificate_gate(cascade.certificate), np.array(losses), same=False),
        share=interval(np.array(shares)),
    )


def certificate_gate(certificate: Certificate) -> Gate:
    """Return the gate that new queries' losses are held against."""
    unseen = WORST_LOSS[certificate.measure]
    return Gate("loss", certificate.max_loss, at_most=True, unseen=unseen)
