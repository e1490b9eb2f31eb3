"""Whether queries, candidates and scores are enough to certify a cascade by."""

from __future__ import annotations

import logging

import numpy as np

from xopt.optimize.cascade.parts import Scored
from xopt.optimize.judge.bounds import least_mean, queries_needed, rounded_up
from xopt.runtime.cascade.loss import lost
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder

__all__ = ["check_enough", "warn_of_scale"]

log = logging.getLogger(__name__)

FEWEST_DOCUMENTS = 2  # times `top`, in the mean: of fewer candidates there is nothing to save
WORST = 3  # times the loss that is allowed: what the worst ranking has to lose


def check_enough(
    folder: ModelFolder,
    judging: Candidates,
    left_out: int,
    top: int,
    max_loss: float,
    error: float | None,
) -> None:
    """Raises BadInput where the queries that certify, without those `left_out`, cannot, or
    nothing can be saved.
    """
    groups = judging.groups()
    if not folder.manifest.ranks:
        raise BadInput(
            f"{folder.path}: has {folder.manifest.labels} labels, and none that ranks; see --rank-label"
        )
    needed = queries_needed(max_loss, error)
    if len(groups) < needed:
        how, ways = (
            "in expectation" if error is None else f"at a confidence of {1 - error:g}",
            ["more queries"],
        )
        if groups and (enough := rounded_up(least_mean(len(groups), error))) < 1:
            ways.append(f"--max-loss {enough:g} or more")
        if error is not None and len(groups) >= (fewer := queries_needed(max_loss, None)):
            ways.append(f"--in-expectation, which takes {fewer} and promises less")
        without = (
            f" ({left_out} others calibrated or chose the variant, or trained a model)"
            if left_out
            else ""
        )
        raise BadInput(
            f"{judging.name}: {len(groups)} queries are left to certify by{without}, and it takes {needed} to show a "
            f"loss under {max_loss:g} {how} even where nothing is lost; give {', or '.join(ways)}"
        )
    if len(judging.rows) < FEWEST_DOCUMENTS * top * len(groups):
        raise BadInput(
            f"{judging.name}: {len(judging.rows) / len(groups):.0f} candidates a query, of which the best {top} "
            f"count: too few to leave any out; give more (--depth), or a smaller --top"
        )


def warn_of_scale(few: Scored, top: int, max_loss: float, measure: str) -> None:
    """Warn where the loss hardly tells rankings apart, since all documents are worth the same:
    logits all high.
    """
    groups = [few.reference[rows] for rows in few.candidates.groups().values()]
    worst = float(
        np.mean(
            [lost(each, np.argsort(each), np.ones(len(each), bool), top, "dcg") for each in groups]
        )
    )
    if measure == "dcg" and worst < WORST * max_loss:
        log.warning(
            "cascade: even the worst %d documents of each query lose only %.3g of DCG, so a loss of %g says little: "
            "by this model nearly all are relevant; --measure top says more",
            top,
            worst,
            max_loss,
        )
