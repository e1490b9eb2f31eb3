"""Runs variants: scorers, data, cascades, Daft frames, jobs and the bench.

The names that users import are offered here, and loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xopt.runtime.scoring.scorer import open_scorer

if TYPE_CHECKING:
    from xopt.runtime.cascade.cascade import open_cascade
    from xopt.runtime.frames.rerank import rerank
    from xopt.runtime.jobs.rerank_files import rerank_files
    from xopt.runtime.scoring.cross_encoder import CrossEncoder

__all__ = ["CrossEncoder", "open_cascade", "open_scorer", "rerank", "rerank_files"]

LAZY = {
    "CrossEncoder": "scoring.cross_encoder",
    "open_cascade": "cascade.cascade",
    "rerank": "frames.rerank",
    "rerank_files": "jobs.rerank_files",
}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"xopt.runtime.{LAZY[name]}")
    return getattr(module, name)
