"""How often verdicts err at a gate's edge, and what labels can show: the figures of
docs/explanations/agreement.md.

    PYTHONPATH=tests python docs/measure/verdicts.py errors
    PYTHONPATH=tests python docs/measure/verdicts.py labels DIR

DIR is a model folder of the demo model with onnx-int8. The distributions are those of the tests.
"""

from __future__ import annotations

import sys

import numpy as np
from helpers.edges import AT_THE_EDGE

from xopt.optimize.judge.looks import look_sizes, one_sided_levels
from xopt.optimize.judge.statistics import ALPHA, FAILED, PASSED, UNDECIDED, hold
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.data.quality import quality_by_query

RUNS, LABELLED = 4000, 700


def errors() -> None:
    print(
        "| queries there are | looks | "
        + " | ".join(gate.measure for gate, _ in AT_THE_EDGE)
        + " |"
    )
    for queries in (40, 300, 1000):
        sizes = look_sizes(queries)
        levels, cells = one_sided_levels(sizes, ALPHA), []
        for gate, values in AT_THE_EDGE:
            random, verdicts = np.random.default_rng(5), []
            for _ in range(RUNS):
                drawn = values(random, queries)
                looks = (
                    hold(gate, drawn[:n], False, level).verdict
                    for n, level in zip(sizes, levels, strict=True)
                )
                verdicts.append(
                    next((verdict for verdict in looks if verdict != UNDECIDED), UNDECIDED)
                )
            cells.append(
                f"{verdicts.count(PASSED) / RUNS:.3f} / {verdicts.count(FAILED) / RUNS:.3f}"
            )
        print(f"| {queries:,} | {len(sizes)} | " + " | ".join(cells) + " |", flush=True)


def labels(folder: str) -> None:
    candidates = demo_candidates(queries=LABELLED)
    first, second = (
        quality_by_query(candidates, open_scorer(folder, variant).score(candidates.pairs))["ndcg10"]
        for variant in ("onnx-fp32", "onnx-int8")
    )
    lost = first - second
    spread = lost.std(ddof=1)
    print(f"loss of nDCG@10 on {len(lost)} queries: {lost.mean():.4f}, ", end="")
    print(f"standard error {spread / np.sqrt(len(lost)):.4f}, of one query {spread:.3f}")


if __name__ == "__main__":
    {"errors": errors, "labels": labels}[sys.argv[1]](*sys.argv[2:])
