"""What shrunk models reach on SciFact's test claims: nDCG@10 by labels, and agreement with the model they come from.

    python docs/measure/students.py DIR SCIFACT SMALL...

DIR is the model folder that each SMALL was made of with `xopt shrink DIR -o SMALL --data SCIFACT --split train`. BM25's
best hundred of each claim are scored in FP32.
"""

from __future__ import annotations

import sys
import time

from xopt.runtime.data.agreement import agreement
from xopt.runtime.data.candidates import read_candidates
from xopt.runtime.data.quality import quality_by_query
from xopt.runtime.scoring.scorer import open_scorer


def main() -> None:
    folder, data, *students = sys.argv[1:]
    candidates = read_candidates(data)
    reference = open_scorer(folder).score(candidates.pairs)
    for name in (folder, *students):
        start = time.monotonic()
        scores = open_scorer(name).score(candidates.pairs)
        took_s = time.monotonic() - start
        quality = quality_by_query(candidates, scores)
        means = ", ".join(f"{measure} {values.mean():.3f}" for measure, values in quality.items())
        print(
            f"{name}: {len(scores) / took_s:.0f} pairs/s; {means}; {agreement(candidates, reference, scores)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
