"""What several tests need: tiny models, short texts, rankings read again, and what is made once
and kept.

Importing it gives each worker of pytest-xdist cores of its own. That has to be before torch and
numpy are imported, which count the cores then: two workers whose thread pools both want all cores
are slower than one."""

from __future__ import annotations

import os


def _keep_to_own_cores() -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER")  # gw0, gw1, ...
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    number = int(worker.removeprefix("gw"))
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    cores = sorted(os.sched_getaffinity(0))
    own = cores[number::workers]
    os.sched_setaffinity(0, own or cores)  # of more workers than cores some have none of their own


_keep_to_own_cores()
