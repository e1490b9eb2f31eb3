"""The process that `bench.worker` starts for a case: `python -m xopt.runtime.bench.worker_main`.

It reads a JSON line from standard input, the scorer's spec and a file of pairs, and writes one to
standard output, the result.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xopt.runtime.errors import BadInput

__all__ = ["main", "opened"]


def main() -> None:
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    # What libraries print goes to standard error, away from the result.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        run = opened(json.loads(sys.stdin.readline()))
        result = run()
    except BadInput as error:
        result = {"bad_input": str(error)}
    out.write(json.dumps(result) + "\n")


def opened(case: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Open and warm up the model of a case.

    Returns a function that runs the case, and returns its scores, calls and times.
    """
    from xopt.runtime.bench.in_daft import run_strategy
    from xopt.runtime.bench.strategy import ScorerSpec
    from xopt.runtime.folder import Plan

    lists = json.loads(Path(case["pairs_file"]).read_text(encoding="utf-8"))
    pairs = [(query, text) for query, text in lists["pairs"]]
    by_query = (lists["query_ids"], lists["first_scores"])
    plan = case["spec"]["plan"]
    spec = ScorerSpec(**{**case["spec"], "plan": Plan(**plan) if plan else None})
    query = run_strategy(spec, pairs, by_query=by_query)

    def run() -> dict[str, Any]:
        voluntary, involuntary = _switches()
        done = query()
        voluntary_after, involuntary_after = _switches()
        return {
            "scores": done.scores.tolist(),
            "calls": [asdict(call) for call in done.calls],
            "load_s": done.load_s,
            "start_s": done.start_s,
            "end_s": done.end_s,
            "switches": [voluntary_after - voluntary, involuntary_after - involuntary],
        }

    return run


def _switches() -> tuple[int, int]:
    """Return voluntary and involuntary context switches, with those of children that ended."""
    try:
        import resource
    except ImportError:  # Windows does not count them
        return 0, 0
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_nvcsw + children.ru_nvcsw, own.ru_nivcsw + children.ru_nivcsw


if __name__ == "__main__":
    main()
