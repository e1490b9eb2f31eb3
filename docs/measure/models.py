"""How near each kind of CrossEncoder comes to sentence-transformers, by exporter: the tables of
docs/models.md.

    PYTHONPATH=tests python docs/measure/models.py

Tiny models with random weights, on the versions that are installed. For each, three things:

- the spread of its logits;
- the largest difference of logits over pairs of all lengths;
- how many products see one row, and how many attentions are one operator.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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

COLUMNS = (
    "torch-fp32",
    "torch-varlen-fp32",
    "onnx-fp32",
    "onnx-fp32 by optimum",
    "onnx-fp32 traced",
    "onnx-int8",
)
OWN = torch.onnx.export


def traced(network: Any, inputs: Any, *_: Any, input_names: list[str], **__: Any) -> Any:
    """Torch's older exporter, in the place of the one that xopt uses."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.onnx"
        axes = {name: {0: "batch", 1: "width"} for name in input_names}
        names = {"input_names": input_names, "output_names": ["logits"], "dynamic_axes": axes}
        OWN(network, inputs, str(file), dynamo=False, opset_version=17, **names)
        return type("Program", (), {"model_proto": onnx.load(file)})


def row(make: Callable[[Path], Path], scratch: Path, docs: Any) -> list[str]:
    """The figures of one kind."""
    model = make(scratch / "model")
    encoder = load_encoder(model)
    ranks = {"rank_label": "none" if encoder.num_labels > 1 else None}
    pairs = pairs_for(encoder.tokenizer, MAX_LENGTH)
    expected = expected_logits(encoder, "model", pairs)

    def difference(folder: Any, variant: str) -> str:
        return f"{np.abs(open_scorer(folder, variant).logits(pairs) - expected).max():.1e}"

    made = export(str(model), scratch / "torch", exporter="torch", **ranks)
    cells = [
        difference(made, name) if name in made.manifest.variants else "" for name in COLUMNS[:3]
    ]
    # what the check refuses is shown, too
    parity.MAX_DIFFERENCE, kept = np.inf, parity.MAX_DIFFERENCE
    try:
        for exporter, function in (("optimum", OWN), ("torch", traced)):
            torch.onnx.export = function
            try:
                cells.append(
                    difference(
                        export(str(model), scratch / f"{len(cells)}", exporter=exporter, **ranks),
                        "onnx-fp32",
                    )
                )
            except BadInput:
                cells.append("no export")
            except Exception:  # of the check, of a rewrite or of the runtime
                cells.append("does not run")
    finally:
        torch.onnx.export, parity.MAX_DIFFERENCE = OWN, kept
    cells.append(difference(quantize(made, recipe_for(detect_target()), docs), "onnx-int8"))
    recipe = made.variant("onnx-fp32").recipe
    return [
        f"{np.std(expected):.2f}",
        *cells,
        str(recipe["one_row_matmuls"]),
        str(recipe["fused_attentions"]),
    ]


def main() -> None:
    warnings.simplefilter("ignore")  # torch's older exporter warns of each Python branch
    logging.disable(logging.WARNING)  # as do the libraries of what random models are not made for
    docs = demo_candidates(queries=8, depth=12)
    optimum = "with optimum" if has_module("optimum.exporters.onnx") else "without optimum"
    print(
        f"transformers {transformers.__version__}, sentence-transformers {sentence_transformers.__version__}, "
        f"torch {torch.__version__}, {optimum}\n"
    )
    heads = ["model", "spread", *COLUMNS, "one row", "fused"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    only = sys.argv[1:]
    for name, make in KINDS.items():
        if not only or name in only:
            with tempfile.TemporaryDirectory() as scratch:
                print("| " + " | ".join([name, *row(make, Path(scratch), docs)]) + " |", flush=True)


if __name__ == "__main__":
    main()
