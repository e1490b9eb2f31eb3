"""One case of a bench in a fresh process: `python -m xopt.runtime.bench.worker_main`, started by
`bench.worker`.

Reads one JSON line from standard input (the scorer's spec and a file of pairs), says "ready" on
standard output when its model is open and warm, waits for a line, runs, and writes the result.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from xopt.runtime.errors import BadInput

__all__ = ["main", "opened"]


def main() -> None:
    """Run the case; a BadInput goes to the parent as such."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever libraries print is no result
    try:
        run = opened(json.loads(sys.stdin.readline()))
        _say(out, event="ready")
        sys.stdin.readline()
        _say(out, event="done", **run())
    except BadInput as error:
        _say(out, event="bad_input", message=str(error))


def opened(case: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Open and warm up the model of a case; what it returns runs the case, and gives scores,
    calls and times.
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
        before = _switches()
        done = query()
        after = _switches()
        return {
            "scores": done.scores.tolist(),
            "calls": [asdict(call) for call in done.calls],
            "load_s": done.load_s,
            "start_s": done.start_s,
            "end_s": done.end_s,
            "switches": [after[kind] - before[kind] for kind in (0, 1)],
        }

    return run


def _switches() -> tuple[int, int]:
    """Voluntary and involuntary context switches of this process and the children that it has
    waited for.
    """
    try:
        import resource
    except ImportError:  # Windows does not count them
        return 0, 0
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_nvcsw for u in used), sum(u.ru_nivcsw for u in used)


def _say(out: TextIO, **message: Any) -> None:
    out.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    main()
