"""Model folders made with one set of versions and opened with the other: `python -m
helpers.stacks make|open FOLDER`.

`make` exports and quantises a few kinds of models and keeps their scores, `open` compares them
with its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from helpers.tiny import KINDS
from xopt.optimize.export import export
from xopt.optimize.model.parity import parity_pairs
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.folder import ModelFolder

# What transformers 5 writes in another way: positions that turn, tokenizers, special tokens.
CHOSEN = (
    "bert",
    "roberta",
    "modernbert",
    "llama, head",
    "modernbert, modules, cls",
    "gemma, LogitScore",
)
VARIANTS = ("torch-fp32", "onnx-fp32", "onnx-int8")
SAME = 2e-5
PAIRS = parity_pairs(60)


def scores(folder: ModelFolder) -> dict[str, np.ndarray]:
    """The logits of variants, and of sentence-transformers on the folder."""
    found = {variant: open_scorer(folder, variant).logits(PAIRS) for variant in VARIANTS}
    return found | {
        "reference": ReferenceScorer(folder, folder.variant("torch-fp32"), threads=1).logits(PAIRS)
    }


def main() -> None:
    what, root = sys.argv[1], Path(sys.argv[2])
    for number, name in enumerate(CHOSEN):
        place = root / str(number)
        if what == "make":
            made = export(str(KINDS[name](place / "model")), place / "made")
            quantize(made, recipe_for(detect_target()), demo_candidates(queries=8, depth=6))
        found = scores(ModelFolder.open(place / "made"))
        if what == "make":
            np.savez(place / "scores.npz", **found)
        else:
            kept = np.load(place / "scores.npz")
            apart = {
                variant: float(np.abs(kept[variant] - found[variant]).max()) for variant in kept
            }
            assert max(apart.values()) < SAME, f"{name}: {apart}"


if __name__ == "__main__":
    main()
