"""How near each kind of CrossEncoder comes to sentence-transformers: the tables of
docs/reference/models.md.

    PYTHONPATH=tests python docs/measure/models.py [KIND...]

Tiny models with random weights, on the versions that are installed. For each: the spread of its
logits, the largest difference of logits over pairs of all lengths, and how many attentions are one
operator.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
import transformers
from helpers.tiny import KINDS, MAX_LENGTH

from xopt.optimize.export import export
from xopt.optimize.model import parity
from xopt.optimize.model.parity import expected_logits, pairs_for
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.machine import has_module
from xopt.runtime.scoring.backends.network import load_encoder

EXACT = ("torch-fp32", "torch-varlen-fp32", "onnx-fp32", "openvino-fp32")
OPTIMUM = has_module("optimum.exporters.onnx")


@contextlib.contextmanager
def whatever_differs() -> Iterator[None]:
    """Export what the check would refuse, so that it is shown too."""
    kept = parity.MAX_DIFFERENCE
    parity.MAX_DIFFERENCE = np.inf
    try:
        yield
    finally:
        parity.MAX_DIFFERENCE = kept


def row(make: Callable[[Path], Path], scratch: Path, docs: Any) -> list[str]:
    """The figures of one kind."""
    model = make(scratch / "model")
    encoder = load_encoder(model)
    rank_label = "none" if encoder.num_labels > 1 else None
    pairs = pairs_for(encoder.tokenizer, MAX_LENGTH)
    expected = expected_logits(encoder, "model", pairs)

    def difference(folder: Any, variant: str) -> str:
        return f"{np.abs(open_scorer(folder, variant).logits(pairs) - expected).max():.1e}"

    with whatever_differs():
        made = export(str(model), scratch / "torch", exporter="torch", rank_label=rank_label)
        has = made.manifest.variants
        exact = [difference(made, name) if name in has else "" for name in EXACT]
        cells = [f"{np.std(expected):.2f}", *exact]
        if OPTIMUM:
            try:
                by_optimum = export(
                    str(model), scratch / "optimum", exporter="optimum", rank_label=rank_label
                )
                cells.append(difference(by_optimum, "onnx-fp32"))
            except BadInput:
                cells.append("no export")
    int8 = quantize(made, recipe_for(detect_target()), docs)
    cells.append(difference(int8, "onnx-int8"))
    cells.append(str(made.variant("onnx-fp32").recipe["fused_attentions"]))
    return cells


def main() -> None:
    warnings.simplefilter("ignore")  # of what random models are not made for
    logging.disable(logging.WARNING)
    docs = demo_candidates(queries=8, depth=12)
    versions = [
        f"transformers {transformers.__version__}",
        f"sentence-transformers {sentence_transformers.__version__}",
        f"torch {torch.__version__}",
        "with optimum" if OPTIMUM else "without optimum",
    ]
    print(", ".join(versions) + "\n")
    optimum = ["onnx-fp32 by optimum"] if OPTIMUM else []
    heads = ["model", "spread", *EXACT, *optimum, "onnx-int8", "fused"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name in sys.argv[1:] or KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            cells = row(KINDS[name], Path(scratch), docs)
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
