"""How the speed moves with the length, the layers and the number of candidates: the tables of
performance.md.

    python docs/measure/shapes.py [models]

Scorers without Daft, on all cores, their rounds interleaved; untuned plans. Layers of the demo
model are dropped or repeated, its texts cut or joined; with `models`, two large ones of random
weights instead. What is timed is real, what such a model ranks is not.
"""

from __future__ import annotations

import copy
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from xopt.optimize.export import export
from xopt.optimize.peers import make_peers
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores
from xopt.runtime.scoring.encode import Encoder, Pair
from xopt.runtime.scoring.scorer import Scorer

VARIANTS = ("onnx-fp32", "openvino-bf16", "onnx-int8", "openvino-int8")
LARGE = {"12 layers of 768": (12, 768), "24 layers of 1,024": (24, 1024)}
LARGE_TOKENS, LARGE_PAIRS = 300, 12
BUDGET_TOKENS = 6000  # of each point
ROUNDS = 3


def main() -> None:
    docs = demo_candidates()
    text = " ".join(row.text for row in docs.rows)
    if sys.argv[1:] == ["models"]:
        large(text)
        return
    with tempfile.TemporaryDirectory() as scratch:
        models = {layers: layered(layers, Path(scratch)) for layers in (6, 2, 12)}
        peers = make_peers(models[6], docs, detect_target(), Path(scratch) / "peers")
        for title, points in (
            (
                "tokens a pair",
                [(n, 6, n, max(2, BUDGET_TOKENS // n)) for n in (20, 60, 110, 250, 500)],
            ),
            ("layers", [(n, n, 110, 54) for n in (2, 6, 12)]),
            ("candidates", [(n, 6, 110, n) for n in (1, 10, 100, 1000)]),
        ):
            names = [
                "torch-fp32/default",
                *VARIANTS,
                *(v for v in peers.manifest.variants if v.startswith("st-onnx")),
            ]
            print(f"| {title} | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
            for value, layers, length, count in points:
                folder = models[layers]
                pairs = pairs_of(Encoder(folder), text, length, count)
                scorers: dict[str, Scorer] = {
                    "torch-fp32/default": ReferenceScorer(
                        folder, folder.variant("torch-fp32"), cores()
                    )
                }
                scorers |= {v: open_scorer(folder.path, v) for v in VARIANTS}
                if layers == 6:
                    scorers |= {
                        v: ReferenceScorer(peers, peers.variant(v), cores())
                        for v in names
                        if v[:2] == "st"
                    }
                times = measure(scorers, pairs)
                base = times["torch-fp32/default"]
                cells = [
                    f"{base / times[n]:.2f} x, {1000 * times[n]:,.0f} ms" if n in times else ""
                    for n in names
                ]
                print(f"| {value} | " + " | ".join(cells) + " |", flush=True)


def layered(layers: int, scratch: Path) -> ModelFolder:
    """The demo model with its layers cut to, or repeated up to, a number."""
    demo, changed, out = scratch / "demo", scratch / f"changed{layers}", scratch / f"model{layers}"
    if not demo.exists():
        export("demo", demo)
    shutil.copytree(demo, changed, ignore=shutil.ignore_patterns("onnx", "xopt.json"))
    model = AutoModelForSequenceClassification.from_pretrained(demo)
    kept = model.bert.encoder.layer
    model.bert.encoder.layer = nn.ModuleList(
        copy.deepcopy(kept[i % len(kept)]) for i in range(layers)
    )
    model.config.num_hidden_layers = layers
    model.save_pretrained(changed)
    return quantised(export(str(changed), out))


def large(text: str) -> None:
    """The table of large models."""
    names = ["torch-fp32/default", *VARIANTS]
    print(
        f"| {LARGE_TOKENS} tokens a pair | "
        + " | ".join(names)
        + " |\n|"
        + "---|" * (len(names) + 1)
    )
    for title, (layers, hidden) in LARGE.items():
        with tempfile.TemporaryDirectory() as scratch:
            given, out = Path(scratch) / "given", Path(scratch) / "out"
            export("demo", given)
            config = AutoConfig.from_pretrained(given)
            config.num_hidden_layers, config.hidden_size, config.intermediate_size = (
                layers,
                hidden,
                4 * hidden,
            )
            config.num_attention_heads = hidden // 64
            shutil.rmtree(given / "onnx")
            (given / "xopt.json").unlink()
            AutoModelForSequenceClassification.from_config(config).save_pretrained(given)
            folder = quantised(export(str(given), out))
            pairs = pairs_of(Encoder(folder), text, LARGE_TOKENS, LARGE_PAIRS)
            scorers: dict[str, Scorer] = {
                names[0]: ReferenceScorer(folder, folder.variant("torch-fp32"), cores()),
                **{v: open_scorer(folder.path, v) for v in VARIANTS},
            }
            times = measure(scorers, pairs)
            cells = [
                f"{times[names[0]] / times[n]:.2f} x, {1000 * times[n]:,.0f} ms" for n in names
            ]
            print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


def quantised(folder: ModelFolder) -> ModelFolder:
    """The folder with both INT8 variants."""
    for scheme in ("per-token", "static"):
        folder = quantize(folder, recipe_for(detect_target(), scheme))
    return folder


def pairs_of(encoder: Encoder, text: str, length: int, count: int) -> list[Pair]:
    """`count` pairs of `length` tokens, a query of about eight words among them."""
    words, pairs, at = text.split(), [], 0
    while len(pairs) < count:
        query, size = " ".join(words[at % 5000 : at % 5000 + 6]), 1
        low, high = 1, length
        while low < high:  # the most words that fit
            size = (low + high + 1) // 2
            passage = " ".join(words[at % 20000 + 6 : at % 20000 + 6 + size])
            low, high = (
                (size, high)
                if int(encoder.encode([(query, passage)]).lengths[0]) <= length
                else (low, size - 1)
            )
        pairs.append((query, " ".join(words[at % 20000 + 6 : at % 20000 + 6 + low])))
        at += 37
    return pairs


def measure(scorers: dict[str, Scorer], pairs: list[Pair]) -> dict[str, float]:
    """Median seconds to score all pairs once, the scorers taking turns."""
    repeats = 20 if len(pairs) == 1 else 1
    times: dict[str, list[float]] = {name: [] for name in scorers}
    for scorer in scorers.values():
        scorer.score(pairs)
    for _ in range(ROUNDS * repeats):
        for name, scorer in scorers.items():
            start = time.perf_counter()
            scorer.score(pairs)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
