"""How fast each kind of model runs: the table of docs/notes/kinds.md.

    python docs/measure/kinds.py [KIND...] [--peers] [--kept FOLDER] [--json FILE]

Models of 6 layers of 384 with random weights: what is timed is real, what they rank is not. 96
pairs of 40 to 400 tokens. Scorers without Daft, on all cores, their rounds interleaved, untuned
plans. `--peers` adds what other tools run. FOLDER keeps the models, which take minutes to make.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shapes import pairs_of, quantised
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from xopt.optimize.export import export
from xopt.optimize.peers import make_peers
from xopt.optimize.quantize import detect_target
from xopt.runtime import open_scorer
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import MANIFEST, ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.scorer import Scorer

SHAPE: dict[str, Any] = {
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}
LAYERS = 6
DECODER = {"num_key_value_heads": 4, "head_dim": 32}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "modernbert": {
        "local_attention": 128,
        "intermediate_size": 576,
        "reference_compile": False,
        "classifier_pooling": "cls",
    },
    # As mxbai-rerank-base-v1.
    "deberta-v2": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "type_vocab_size": 0,
        "pooler_hidden_size": 384,
    },
    "qwen2": DECODER,
    "qwen3": DECODER,
}
VARIANTS = ("onnx-fp32", "openvino-fp32", "onnx-int8", "openvino-int8")
TOKENS = (40, 400)
PAIRS = 96
ROUNDS = 3
# Sizes of sentence-transformers' batches; the first is its default.
BATCHES = (32, 4)


def random_model(kind: str, layers: int, demo: ModelFolder, place: Path) -> Path:
    """Write a CrossEncoder with random weights and the demo model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(demo.path)
    special = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep")
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        num_labels=1,
        bos_token_id=special["cls_token_id"],
        eos_token_id=special["sep_token_id"],
        **{**SHAPE, **KINDS[kind], **special},
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def made(kind: str, kept: Path) -> ModelFolder:
    """Return the model folder of a kind, which `kept` has or gets."""
    place = kept / kind
    if not (place / MANIFEST).is_file():
        model = random_model(kind, LAYERS, demo_in(kept), kept / f"{kind}-given")
        quantised(export(str(model), place))
    return ModelFolder.open(place)


def demo_in(kept: Path) -> ModelFolder:
    """Return the demo model, which `kept` has or gets."""
    place = kept / "demo"
    return ModelFolder.open(place) if place.exists() else export("demo", place)


def peers_of(folder: ModelFolder, kept: Path) -> ModelFolder | None:
    """Return the folder of what other tools run, or None where they cannot."""
    place = kept / f"{folder.path.name}-peers"
    if not (place / MANIFEST).is_file():
        # Other tools do not export every kind.
        with contextlib.suppress(BadInput):
            return make_peers(folder, demo_candidates(), detect_target(), place)
        return None
    return ModelFolder.open(place)


def scorers_of(folder: ModelFolder, peers: ModelFolder | None) -> dict[str, Scorer]:
    """Return all that takes turns, sentence-transformers' default first."""
    reference = folder.variant("torch-fp32")
    scorers: dict[str, Scorer] = {}
    for size in BATCHES:
        scorers[f"torch, {size}"] = ReferenceScorer(folder, reference, cores(), size)
    for name in VARIANTS:
        if name in folder.manifest.variants:
            scorers[name] = open_scorer(folder, name)
    for name, variant in peers.manifest.variants.items() if peers else ():
        if name.startswith("st-"):
            for size in BATCHES:
                scorers[f"{name}, {size}"] = ReferenceScorer(peers, variant, cores(), size)
    return scorers


def pairs_for(folder: ModelFolder) -> list[Pair]:
    """Return pairs of all lengths, in no order."""
    text = " ".join(row.text for row in demo_candidates().rows)
    encoder = Encoder(folder)
    lengths = np.linspace(*TOKENS, PAIRS).astype(int)
    pairs = [pairs_of(encoder, text, int(length), 1)[0] for length in lengths]
    return [pairs[place] for place in np.random.default_rng(0).permutation(PAIRS)]


def rates(scorers: dict[str, Scorer], pairs: list[Pair]) -> dict[str, list[float]]:
    """Return pairs a second of each round, the scorers taking turns."""
    found: dict[str, list[float]] = {name: [] for name in scorers}
    for scorer in scorers.values():
        scorer.score(pairs)
    for _ in range(ROUNDS):
        for name, scorer in scorers.items():
            start_s = time.perf_counter()
            scorer.score(pairs)
            found[name].append(len(pairs) / (time.perf_counter() - start_s))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--peers", action="store_true", help="time what other tools run, too")
    parser.add_argument("--kept", type=Path, help="keep the models here")
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as scratch:
        kept = given.kept or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        for kind in given.kinds or KINDS:
            folder = made(kind, kept)
            peers = peers_of(folder, kept) if given.peers else None
            result[kind] = rates(scorers_of(folder, peers), pairs_for(folder))
            medians = {name: statistics.median(each) for name, each in result[kind].items()}
            base = next(iter(medians.values()))
            print(f"\n{kind}\n| | speed | pairs/s |\n|---|---:|---:|")
            for name, median in medians.items():
                print(f"| {name} | {median / base:.2f} x | {median:.1f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
