"""What shrunk models reach on SciFact's test claims: nDCG@10 by labels, and agreement with the
model they come from.

    python docs/measure/cascade/students.py DIR SCIFACT SMALL...

DIR is the model folder that each SMALL was made of with `xopt shrink DIR -o SMALL --data SCIFACT
--split train`. BM25's best hundred of 100 claims, always the same, are scored in FP32.
"""

from __future__ import annotations

import sys
import time

from xopt.runtime.data.agreement import agreement
from xopt.runtime.data.candidates import read_candidates
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.scoring.scorer import open_scorer

QUERIES = 100


def main() -> None:
    candidates = read_candidates(sys.argv[2], queries=QUERIES)
    reference = None
    for name in (sys.argv[1], *sys.argv[3:]):
        start = time.monotonic()
        scores = open_scorer(name).score(candidates.pairs)
        took_s = time.monotonic() - start
        reference = scores if reference is None else reference
        quality = {
            measure: values.mean()
            for measure, values in quality_by_query(candidates, scores).items()
        }
        like = agreement(candidates, reference, scores)
        print(
            f"{name}: {len(scores) / took_s:.0f} pairs/s",
            {m: round(v, 3) for m, v in quality.items()},
            like,
            flush=True,
        )


if __name__ == "__main__":
    main()
