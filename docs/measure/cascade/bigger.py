"""A cheap model before a big one: `python docs/measure/cascade/bigger.py DEMO_DIR [--queries 40]`.

Makes a model of 12 layers of hidden 768 out of the demo model. Each width comes twice: that keeps
the function, as Net2Wider does (Chen et al. 2016, arXiv:1511.05641). Behind each layer stands
another one that hardly does anything. So it agrees with the demo model well and not wholly.
Then `xopt cascade BIG --first DEMO_DIR` on the demo data, 100 candidates a query, and a bench
inside Daft; and the same in a learned order.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig

from xopt.runtime.data.candidates import DEMO_QUERIES, demo_candidates

DEPTH = 100
NOISE = 2e-3  # standard deviation of what the added layers add


def widened(name: str, value: Tensor) -> Tensor:
    """A weight of the network of twice the width whose halves compute what the narrow one does."""
    if "embeddings." in name and value.dim() == 2:
        return torch.cat([value, value], 1)
    if name == "classifier.weight":
        return torch.cat([value, value], 1) / 2
    if name == "classifier.bias":
        return value
    return torch.cat([value, value]) if value.dim() == 1 else value.repeat(2, 2) / 2


def bigger(source: Path, out: Path) -> None:
    """Write the bigger CrossEncoder."""
    small = AutoModelForSequenceClassification.from_pretrained(source)
    own = small.config
    sizes = {
        "hidden_size": 2,
        "intermediate_size": 2,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    config = BertConfig(
        **{**own.to_dict(), **{name: by * getattr(own, name) for name, by in sizes.items()}}
    )
    big = AutoModelForSequenceClassification.from_config(config)
    weights, generator = {}, torch.Generator().manual_seed(0)
    for name, value in small.state_dict().items():
        if "encoder.layer." not in name:
            weights[name] = widened(name, value)
            continue
        head, _, rest = name.partition("encoder.layer.")
        number, _, part = rest.partition(".")
        weights[f"{head}encoder.layer.{2 * int(number)}.{part}"] = widened(name, value)
        added = torch.randn(widened(name, value).shape, generator=generator) * NOISE
        weights[f"{head}encoder.layer.{2 * int(number) + 1}.{part}"] = added
    # A normalisation of what is normalised already gives it back where it puts back its mean and
    # standard deviation.
    for number in range(own.num_hidden_layers):
        before = f"bert.encoder.layer.{2 * number}.output.LayerNorm"
        scale, shift = weights[f"{before}.weight"], weights[f"{before}.bias"]
        mean, spread = (
            shift.mean(),
            (scale.square() + (shift - shift.mean()).square()).mean().sqrt(),
        )
        for part in ("attention.output", "output"):
            after = f"bert.encoder.layer.{2 * number + 1}.{part}.LayerNorm"
            weights[f"{after}.weight"] = torch.full_like(scale, float(spread))
            weights[f"{after}.bias"] = torch.full_like(shift, float(mean))
    big.load_state_dict(weights)
    big.save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / file).is_file():
            shutil.copy(source / file, out)


def run(*arguments: object) -> None:
    """A command of xopt."""
    print("xopt", *arguments, flush=True)
    subprocess.run(
        [sys.executable, "-c", "from xopt.cli.main import main; main()", *map(str, arguments)],
        check=False,
    )


def main() -> None:
    """Make it, certify the cascade and time it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--max-loss", default="0.04")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "model", Path(scratch) / "big"
        bigger(given.folder, source)
        # None of those that calibrate INT8.
        rows = demo_candidates(DEMO_QUERIES + given.queries, DEPTH).between(DEMO_QUERIES, None).rows
        file = Path(scratch) / "demo100.jsonl"
        file.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
        run("-q", "export", source, "-o", out)
        run("-q", "quantize", out, "--int8")
        run("-q", "tune", out, "--variant", "onnx-int8")
        data = ("--data", file)
        for first in (given.folder, "learned"):
            run(
                "-q",
                "cascade",
                out,
                "--first",
                first,
                *data,
                "--max-loss",
                given.max_loss,
                "--in-expectation",
            )
            strategies = (
                "--strategy",
                "planned",
                "--strategy",
                "cascade",
                "--variant",
                "onnx-int8",
            )
            run("-q", "bench", out, *data, *strategies, "--pairs", 300, "--repeat", 2)


if __name__ == "__main__":
    main()
