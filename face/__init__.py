"""Makes a CrossEncoder several times faster, and proves that it still ranks the same.

Every name is imported when it is first used. `docs/guides/python.md` shows the whole way in Python.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xopt.optimize.cascade.certify import certify
    from xopt.optimize.export import export
    from xopt.optimize.pipeline import optimize as optimize_model
    from xopt.optimize.quantize import detect_target, quantize, recipe_for
    from xopt.optimize.shrink.shrink import shrink
    from xopt.optimize.tune import tune
    from xopt.optimize.validate import validate
    from xopt.runtime.bench.bench import Case, bench
    from xopt.runtime.cascade.cascade import open_cascade
    from xopt.runtime.data.candidates import Candidates, read_candidates
    from xopt.runtime.data.columns import Columns
    from xopt.runtime.errors import BadInput, GateFailed
    from xopt.runtime.folder import ModelFolder
    from xopt.runtime.frames.rerank import rerank, score
    from xopt.runtime.jobs.rerank_files import rerank_files
    from xopt.runtime.scoring.cross_encoder import CrossEncoder
    from xopt.runtime.scoring.scorer import open_scorer

    __version__: str

__all__ = [
    "BadInput",
    "Candidates",
    "Case",
    "Columns",
    "CrossEncoder",
    "GateFailed",
    "ModelFolder",
    "__version__",
    "bench",
    "certify",
    "detect_target",
    "export",
    "open_cascade",
    "open_scorer",
    "optimize_model",
    "quantize",
    "read_candidates",
    "recipe_for",
    "rerank",
    "rerank_files",
    "score",
    "shrink",
    "tune",
    "validate",
]

# onnxruntime sends usage data to its maker otherwise, and heeds this as it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# The module of each name. `xopt.optimize` is a package, so what it does as a whole is
# `optimize_model`.
MODULES = {
    "BadInput": "runtime.errors",
    "Candidates": "runtime.data.candidates",
    "Case": "runtime.bench.bench",
    "Columns": "runtime.data.columns",
    "CrossEncoder": "runtime.scoring.cross_encoder",
    "GateFailed": "runtime.errors",
    "ModelFolder": "runtime.folder",
    "bench": "runtime.bench.bench",
    "certify": "optimize.cascade.certify",
    "detect_target": "optimize.quantize",
    "export": "optimize.export",
    "open_cascade": "runtime.cascade.cascade",
    "open_scorer": "runtime.scoring.scorer",
    "optimize_model": "optimize.pipeline",
    "quantize": "optimize.quantize",
    "read_candidates": "runtime.data.candidates",
    "recipe_for": "optimize.quantize",
    "rerank": "runtime.frames.rerank",
    "rerank_files": "runtime.jobs.rerank_files",
    "score": "runtime.frames.rerank",
    "shrink": "optimize.shrink.shrink",
    "tune": "optimize.tune",
    "validate": "optimize.validate",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("xopt-rerank")
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    own_name = "optimize" if name == "optimize_model" else name
    return getattr(import_module(f"xopt.{MODULES[name]}"), own_name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
