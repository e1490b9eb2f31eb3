"""What is made once for all workers of pytest-xdist."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

Made = TypeVar("Made")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What `make` makes in a folder of this name, which the first worker to ask has made for
    all.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder in that of the run
    place = root / f"once-{name}"
    kept = place / "made.pickle"
    with FileLock(f"{place}.lock"):
        if not kept.is_file():
            place.mkdir()
            kept.write_bytes(pickle.dumps(make(place)))
    made: Made = pickle.loads(kept.read_bytes())
    return made
