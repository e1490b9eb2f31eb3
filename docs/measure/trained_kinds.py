"""How INT8 ranks in each kind of model.

    python docs/measure/trained_kinds.py KIND... [--minutes N] [--kept FOLDER] [--json FILE]

Random weights prove nothing. So a model of 4 layers of each kind learns the demo model's scores and
layers' outputs, on the demo data, as `xopt shrink` does. DeBERTa has 6 layers, which start as the
demo model's; others start at random. Each INT8 variant is then judged against its own FP32 on
queries that it has not seen. On two cores 7 minutes are far too few.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
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

# Which of the demo model's layers those of a kind stand for.
STAND_FOR = (0, 1, 3, 4)
ALL_LAYERS = (0, 1, 2, 3, 4, 5)
TRAINED_TOKENS = 96
DRAWN = 4000
HELD_OUT = 40  # queries
INT8 = ("onnx-int8", "openvino-int8")
# DeBERTa's embeddings of positions are normalised to this size at first: hardly anything.
FIRST_POSITIONS = 0.05


def trained(kind: str, minutes: float, kept: Path, learning: Candidates) -> ModelFolder:
    """Return the model folder of a trained model of a kind, which `kept` has or gets."""
    place = kept / f"{kind}-trained"
    if (place / MANIFEST).is_file():
        return ModelFolder.open(place)
    demo = demo_in(kept)
    stand_for = ALL_LAYERS if kind == "deberta-v2" else STAND_FOR
    given = random_model(kind, len(stand_for), demo, kept / f"{kind}-student")
    teacher = load_own(demo)
    student = load_encoder(given)
    words = teacher.model.get_input_embeddings().weight
    student.model.get_input_embeddings().weight.data.copy_(words)
    if kind == "deberta-v2":
        start_as_teacher(teacher.model, student.model)
    rng = np.random.default_rng(0)
    lists = in_turn(own_lists(learning, rng), draw_lists(learning, DRAWN, rng), rng)
    short = replace(demo, manifest=replace(demo.manifest, max_length=TRAINED_TOKENS))
    done = distil(
        teacher,
        student,
        stand_for,
        lists,
        Encoder(short),
        seconds=60 * minutes,
        device="cpu",
        mixed=False,
    )
    print(f"{kind}: {done}", flush=True)
    student.save_pretrained(str(given), create_model_card=False)
    return quantised(export(str(given), place))


@torch.no_grad()
def start_as_teacher(bert: Any, deberta: Any) -> None:
    """Give DeBERTa the weights of BERT's layers, so that it scores alike but for positions."""
    deberta.classifier.load_state_dict(bert.classifier.state_dict())
    deberta.pooler.dense.load_state_dict(bert.bert.pooler.dense.state_dict())
    norm = bert.bert.embeddings.LayerNorm
    deberta.deberta.embeddings.LayerNorm.load_state_dict(norm.state_dict())
    encoder = deberta.deberta.encoder
    encoder.LayerNorm.weight.fill_(FIRST_POSITIONS)
    for own, other in zip(encoder.layer, bert.bert.encoder.layer, strict=True):
        for part in ("attention.output", "intermediate", "output"):
            own.get_submodule(part).load_state_dict(other.get_submodule(part).state_dict())
        attention = own.attention.self
        for name in ("query", "key", "value"):
            projection = getattr(other.attention.self, name)
            getattr(attention, f"{name}_proj").load_state_dict(projection.state_dict())
        # Its scores are sums of three terms, and so divided by the square root of 3 more.
        attention.query_proj.weight.mul_(math.sqrt(3))
        # The bias counts twice, since positions are projected with it, too.
        attention.query_proj.bias.mul_(math.sqrt(3) / 2)


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
