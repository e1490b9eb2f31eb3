"""Runs variants: model folder, scorers, planning, the Daft UDF, bench, monitor, candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xopt.runtime.scoring.cross_encoder import CrossEncoder
from xopt.runtime.scoring.scorer import open_scorer

if TYPE_CHECKING:
    from xopt.runtime.frames.rerank import rerank

__all__ = ["CrossEncoder", "open_scorer", "rerank"]


def __getattr__(name: str) -> Any:
    if name == "rerank":  # Daft takes a second to import: only who asks for it waits
        from xopt.runtime.frames.rerank import rerank

        return rerank
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
