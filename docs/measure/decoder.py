"""A language model as reranker on a CPU: the table of docs/models.md.

    PYTHONPATH=tests python docs/measure/decoder.py

The shape of Qwen3-Reranker-0.6B (28 layers of 1024, 151,936 words; LogitScore) with random
weights: what is timed is real, what it ranks is not. Scorers without Daft on all cores, rounds
interleaved, untuned plans. Takes 15 GB of memory and 10 of disk.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from helpers import tiny
from helpers.tiny import make_logit_score

from xopt.optimize.export import export
from xopt.optimize.quantize import detect_target, quantize, recipe_for
from xopt.runtime import open_scorer
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.machine import cores

SHAPE = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "initializer_range": 0.03,
}
QWEN3 = {"num_key_value_heads": 8, "head_dim": 128, "rope_theta": 1e6, "tie_word_embeddings": True}
WORDS = 151_936
VARIANTS = ("torch-fp32", "onnx-fp32", "onnx-int8")
PAIRS, ROUNDS = 16, 2


def timed(work: Any) -> tuple[float, Any]:
    start = time.monotonic()
    made = work()
    return time.monotonic() - start, made


def main() -> None:
    known = tiny.AutoConfig.for_model
    tiny.AutoConfig.for_model = lambda kind, **values: known(
        kind, **{**values, "vocab_size": WORDS}
    )
    tiny.SIZES.update(SHAPE)
    tiny.SPECIAL["qwen3"] = QWEN3
    docs = demo_candidates(queries=8, depth=12)
    with tempfile.TemporaryDirectory() as scratch:
        model = make_logit_score(Path(scratch) / "model")
        took, folder = timed(lambda: export(str(model), Path(scratch) / "out"))
        print(
            f"export {took:.0f} s, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
        )
        took, folder = timed(lambda: quantize(folder, recipe_for(detect_target()), docs))
        print(f"quantize {took:.0f} s\n")
        scorers = {
            "sentence-transformers": ReferenceScorer(folder, folder.variant("torch-fp32"), cores())
        }
        scorers |= {name: open_scorer(folder, name) for name in VARIANTS}
        pairs = docs.pairs[:PAIRS]
        times = {
            name: [timed(lambda s=scorer: s.score(pairs))[0] for _ in "w"]
            for name, scorer in scorers.items()
        }
        for _ in range(ROUNDS):
            for name, scorer in scorers.items():
                times[name].append(timed(lambda s=scorer: s.score(pairs))[0])
        base = statistics.median(times["sentence-transformers"][1:])
        print("| | speed | pairs/s |\n|---|---|---|")
        for name, each in times.items():
            median = statistics.median(each[1:])
            print(f"| {name} | {base / median:.2f} x | {PAIRS / median:.1f} |")


if __name__ == "__main__":
    main()
