"""Cases of a test that `make test` runs, and those that only `make test-all` does."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

SLOW = pytest.mark.slow


def mostly_slow(names: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Cases for `parametrize`: those that are not `quick` are marked slow."""
    names = list(names)
    unknown = set(quick) - set(names)
    assert not unknown, f"no cases of these names: {unknown}"
    return [name if name in quick else pytest.param(name, marks=SLOW) for name in names]
