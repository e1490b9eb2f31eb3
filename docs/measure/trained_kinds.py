"""How INT8 ranks in each kind of model.

    python docs/measure/trained_kinds.py KIND... [--minutes N] [--kept FOLDER] [--json FILE]

Random weights prove nothing. So a model of 4 layers of each kind learns the demo model's scores and
layers' outputs, on the demo data, as `xopt shrink` does. Each INT8 variant is then judged against
its own FP32 on queries that it has not seen. Two cores take an hour for each kind.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kinds import KINDS, demo_in, random_model
from shapes import quantised

from xopt.optimize.export import export
from xopt.optimize.shrink.distil import distil
from xopt.optimize.shrink.lists import draw_lists, in_turn, own_lists
from xopt.optimize.validate import validate
from xopt.runtime.data.candidates import Candidates, demo_candidates
from xopt.runtime.folder import MANIFEST, ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring.backends.network import load_encoder, load_own
from xopt.runtime.scoring.encode import Encoder

LAYERS = 4
# Of the demo model's six layers those that the four stand for.
STAND_FOR = (0, 1, 3, 4)
TRAINED_TOKENS = 96
DRAWN = 4000
HELD_OUT = 40  # queries
INT8 = ("onnx-int8", "openvino-int8")


def trained(kind: str, minutes: float, kept: Path, learning: Candidates) -> ModelFolder:
    """Return the model folder of a trained model of a kind, which `kept` has or gets."""
    place = kept / f"{kind}-trained"
    if (place / MANIFEST).is_file():
        return ModelFolder.open(place)
    demo = demo_in(kept)
    given = random_model(kind, LAYERS, demo, kept / f"{kind}-student")
    teacher = load_own(demo)
    student = load_encoder(given)
    words = teacher.model.get_input_embeddings().weight
    student.model.get_input_embeddings().weight.data.copy_(words)
    rng = np.random.default_rng(0)
    lists = in_turn(own_lists(learning, rng), draw_lists(learning, DRAWN, rng), rng)
    short = replace(demo, manifest=replace(demo.manifest, max_length=TRAINED_TOKENS))
    done = distil(
        teacher,
        student,
        STAND_FOR,
        lists,
        Encoder(short),
        seconds=60 * minutes,
        device="cpu",
        mixed=False,
    )
    print(f"{kind}: {done}", flush=True)
    student.save_pretrained(str(given), create_model_card=False)
    return quantised(export(str(given), place))


def judged(folder: ModelFolder, held_out: Candidates) -> list[dict[str, Any]]:
    """Return what `xopt validate` says of the INT8 variants."""
    variants = [name for name in INT8 if name in folder.manifest.variants]
    validation = validate(folder, variants, held_out)
    return [dataclasses.asdict(each) for each in validation.judged]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="+", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--minutes", type=float, default=60, help="of training for each kind")
    parser.add_argument("--kept", type=Path, help="keep the models here")
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    torch.set_num_threads(cores())
    candidates = demo_candidates()
    held_out = candidates.between(0, HELD_OUT)
    learning = candidates.between(HELD_OUT, len(candidates.groups()))
    result = {}
    with tempfile.TemporaryDirectory() as scratch:
        kept = given.kept or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        for kind in given.kinds:
            folder = trained(kind, given.minutes, kept, learning)
            result[kind] = judged(folder, held_out)
            for each in result[kind]:
                print(kind, each, flush=True)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
