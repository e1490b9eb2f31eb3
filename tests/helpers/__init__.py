"""What several tests need: tiny models, short texts, rankings read again, and what is made once and kept.

Importing it gives each worker of pytest-xdist cores of its own. That has to be before torch and numpy are imported,
which count the cores then: two workers whose thread pools both want all cores are slower than one.
"""

from __future__ import annotations

import os


def _keep_to_own_cores() -> None:
    worker, workers = (os.environ.get(f"PYTEST_XDIST_WORKER{what}") for what in ("", "_COUNT"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    own = cores[int(worker.removeprefix("gw")) :: int(workers or 1)]
    os.sched_setaffinity(0, own or cores)


_keep_to_own_cores()
