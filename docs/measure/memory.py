"""What long pairs take of memory. Linux only.

    PYTHONPATH=tests python docs/measure/memory.py [ARCHITECTURE...] [--json FILE]

Tiny models with random weights that read 8,192 tokens: what they take is attention's scores, of
4 heads. Each figure is from a process of its own. It scores 1, 2 or 8 pairs of about 8,000
tokens, and 1,000 short ones after them.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LENGTH = 8192
ARCHITECTURES = ("modernbert", "llama", "qwen2", "bert")
REFERENCE = "sentence-transformers"
VARIANTS = (
    REFERENCE,
    "torch-fp32",
    "torch-varlen-fp32",
    "onnx-fp32",
    "onnx-int8",
    "openvino-fp32",
    "openvino-int8",
)
COUNTS = (1, 2, 8)
SHORT_PAIRS = 1000


def made(architecture: str, scratch: Path) -> Path:
    from helpers.tiny import make_tiny

    from xopt.optimize.export import export
    from xopt.optimize.quantize import detect_target, quantize, recipe_for
    from xopt.runtime.data.candidates import demo_candidates

    source = make_tiny(scratch / architecture, architecture, max_position_embeddings=LENGTH)
    config = source / "tokenizer_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**values, "model_max_length": LENGTH}), encoding="utf-8")
    folder = export(str(source), scratch / f"{architecture}-xopt")
    few = demo_candidates(queries=8, depth=4)
    for scheme in ("per-token", "static"):
        folder = quantize(folder, recipe_for(detect_target(), scheme), few)
    return folder.path


def mib(name: str) -> int:
    """What Linux counts of this process: VmRSS is now, VmHWM the most so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"{name}:\s+(\d+)", status)
    assert found
    return int(found[1]) // 1024


def one(folder: str, variant: str, count: int) -> None:
    """Print what is held when the model is open, the peak, and what is held at last."""
    if variant == REFERENCE:
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(folder, device="cpu")
        score = functools.partial(model.predict, batch_size=1)  # it pads, too
    else:
        from xopt.runtime import open_scorer

        score = open_scorer(folder, variant).score
    opened = mib("VmRSS")
    score([("data", "index " * (8000 - 50 * row)) for row in range(count)])
    peak = mib("VmHWM")
    score([("data", "index " * (i % 40) + "search " * (i // 40)) for i in range(SHORT_PAIRS)])
    print(json.dumps([opened, peak, mib("VmRSS")]))


def measured(folder: Path, variant: str, count: int) -> tuple[int, int, int]:
    command = [sys.executable, __file__, "--one", str(folder), variant, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{variant}, {count} pairs: {done.stderr[-2000:]}")
    opened, peak, after = json.loads(done.stdout.splitlines()[-1])
    return opened, peak, after


def main() -> None:
    """Print the memory of each variant of each architecture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for architecture in given.architectures:
            folder = made(architecture, Path(scratch))
            for variant in VARIANTS:
                for pairs in COUNTS:
                    opened, peak, after = measured(folder, variant, pairs)
                    row = {"architecture": architecture, "variant": variant, "pairs": pairs}
                    row |= {"opened_mib": opened, "peak_mib": peak, "after_mib": after}
                    print(*row.values(), flush=True)
                    rows.append(row)
    if given.json:
        given.json.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
