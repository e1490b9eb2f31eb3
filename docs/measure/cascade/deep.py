"""A cascade against its variant on everything, inside Daft: `python docs/measure/cascade/deep.py
DIR SCIFACT`.

As `xopt bench --strategy planned --strategy cascade`, but without sentence-transformers. That takes
minutes a query at this depth, and a dozen queries are timed. They are claims of SciFact that the
cascade has not seen, BM25's best 1,000 each, in turns. The loss is against the variant's own scores
of everything.
"""

from __future__ import annotations

import argparse

import numpy as np

from xopt.runtime.bench.in_daft import run_strategy
from xopt.runtime.bench.strategy import ScorerSpec
from xopt.runtime.cascade.cascade import Cascade
from xopt.runtime.cascade.loss import CascadeLosses
from xopt.runtime.data.candidates import read_candidates
from xopt.runtime.folder import ModelFolder


def main() -> None:
    """Print the times, and what was scored and lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("scifact")
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--repeat", type=int, default=2)
    given = parser.parse_args()
    cascade = Cascade.of(ModelFolder.open(given.folder))
    candidates = read_candidates(given.scifact, depth=given.depth).without(
        set(cascade.certificate.seen)
    )
    candidates = candidates.between(0, given.queries)
    names = ("planned", "cascade")
    runs = [
        run_strategy(ScorerSpec(given.folder, cascade.variant, name, None), candidates.pairs)
        for name in names
    ]
    for number in range(given.repeat):
        planned, fewer = (run() for run in runs)
        took_s = [made.end_s - made.start_s for made in (planned, fewer)]
        found = CascadeLosses.of(cascade, candidates, planned.scores, fewer.scores)
        depths = sorted(
            int(np.isfinite(fewer.scores[rows]).sum()) for rows in candidates.groups().values()
        )
        print(
            f"round {number + 1}: {len(candidates.rows)} pairs in {took_s[0]:.1f} s, by the cascade {took_s[1]:.1f} s: "
            f"{took_s[0] / took_s[1]:.2f} times; {found.share:.1%} scored ({depths}), lost {np.mean(found.losses):.4f}"
        )


if __name__ == "__main__":
    main()
