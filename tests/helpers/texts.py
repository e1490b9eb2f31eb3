"""Candidates of short texts, which cost a forward less."""

from __future__ import annotations

from dataclasses import replace

from xopt.runtime.data.candidates import Candidates


def shortened(candidates: Candidates, characters: int = 200) -> Candidates:
    """The same candidates with the beginnings of their texts."""
    return replace(
        candidates, rows=tuple(replace(row, text=row.text[:characters]) for row in candidates.rows)
    )
