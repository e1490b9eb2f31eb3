"""All that only a GPU can show, in one go: its tests, then speed and agreement of each variant.
Writes one JSON.

    python docs/measure/gpu.py [-o gpu.json] [--trained DIR]

Runs from a checkout, installed or not. The machine needs PyTorch, transformers,
sentence-transformers and what comes with them. Daft is used where it is installed. Models have
random weights, so only --trained DIR, a CrossEncoder, shows how far rankings agree. Rounds are
interleaved and ratios are medians over them. `--device cpu --pairs 200` tries the script itself,
on a tiny model.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from scipy import stats
from tokenizers import BertWordPieceTokenizer

ROOT = Path(__file__).parents[2]
if importlib.util.find_spec("xopt") is None:  # not installed: the folders under their name
    SHIM = Path(tempfile.mkdtemp(prefix="xopt-"))
    (SHIM / "xopt").mkdir()
    for part in ("cli", "optimize", "runtime"):
        (SHIM / "xopt" / part).symlink_to(ROOT / part)
    sys.path.insert(0, str(SHIM))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SHIM), os.environ.get("PYTHONPATH", "")])

from xopt.optimize.export import export
from xopt.optimize.tune import tune
from xopt.runtime.bench.reference import ReferenceScorer
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.data.docstrings import read_docstrings
from xopt.runtime.folder import ModelFolder
from xopt.runtime.machine import cores, machine_name
from xopt.runtime.scoring.plan import default_plan
from xopt.runtime.scoring.scorer import open_scorer

Pair = tuple[str, str]
MAX_LENGTH, MEAN_TOKENS, CANDIDATES = 512, 160, 100
SHAPES = {  # layers, hidden, heads, and which part of the pairs
    "6 x 384": (6, 384, 12, 1.0),
    "12 x 1024": (12, 1024, 16, 0.2),
}
TRIAL = {"2 x 64": (2, 64, 4, 1.0)}  # on a CPU
BATCHES = (32, 64, 128, 256, 512)  # of sentence-transformers in FP16; the best one takes part
VARIANTS = ("torch-fp16", "torch-varlen-fp16", "torch-varlen-bf16")


def texts() -> list[str]:
    """Words of the running Python's docstrings."""
    return [
        f"{d.summary} {d.body}"
        for d in read_docstrings(Path(os.__file__).parent, frozenset({"site-packages"}))
    ]


def make_pairs(corpus: Sequence[str], number: int, tokens_a_word: float) -> list[Pair]:
    """Queries of 5 to 12 words with passages whose lengths are spread as those of web passages:
    log-normally.
    """
    rng, words = np.random.default_rng(0), " ".join(corpus).split()
    made: list[Pair] = []
    while len(made) < number:
        start = int(rng.integers(len(words) - 600))
        query = " ".join(words[start : start + int(rng.integers(5, 13))])
        for _ in range(min(CANDIDATES, number - len(made))):
            start = int(rng.integers(len(words) - 600))
            length = int(
                np.clip(
                    rng.lognormal(np.log((MEAN_TOKENS - 30) / tokens_a_word) - 0.125, 0.5), 8, 600
                )
            )
            made.append((query, " ".join(words[start : start + length])))
    return made


def make_model(folder: Path, corpus: Sequence[str], layers: int, hidden: int, heads: int) -> Path:
    """A BERT cross-encoder with random weights and a WordPiece vocabulary of the corpus."""
    torch.manual_seed(0)
    made = BertWordPieceTokenizer()
    made.train_from_iterator(corpus, vocab_size=30522, show_progress=False)
    folder.mkdir(parents=True)
    made.save_model(str(folder))
    tokenizer = transformers.BertTokenizerFast(
        str(folder / "vocab.txt"), model_max_length=MAX_LENGTH
    )
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        num_labels=1,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def candidates_of(pairs: Sequence[Pair]) -> Candidates:
    rows = tuple(
        Row(query, query, str(i), text) for i, (query, text) in enumerate(dict.fromkeys(pairs))
    )
    return Candidates("docstrings", rows)


def agreement(expected: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Mean Kendall tau-b over queries, and the largest difference of logits."""
    starts = range(0, len(expected), CANDIDATES)
    taus = [
        stats.kendalltau(expected[s : s + CANDIDATES], scores[s : s + CANDIDATES]).statistic
        for s in starts
    ]
    return {"tau": float(np.mean(taus)), "max_difference": float(np.abs(scores - expected).max())}


def timed(score: Callable[[list[Pair]], Any], pairs: list[Pair], device: str) -> tuple[float, Any]:
    start = time.perf_counter()
    scores = score(pairs)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, scores


def in_daft(
    folder: ModelFolder, variant: str, pairs: list[Pair], device: str
) -> Callable[[], float]:
    """A query of all pairs inside Daft, its model open and warm: seconds a run."""
    from xopt.runtime.bench.in_daft import pairs_frame, run_strategy
    from xopt.runtime.bench.strategy import ScorerSpec

    spec = ScorerSpec(str(folder.path), variant, "planned", cores(), device, None)
    run = run_strategy(spec, pairs, pairs_frame(pairs).collect())

    def seconds() -> float:
        done = run()
        return done.end_s - done.start_s

    return seconds


def best_batch(folder: ModelFolder, pairs: list[Pair], device: str) -> int:
    rates = {}
    for batch in BATCHES:
        scorer = ReferenceScorer(folder, folder.variant("torch-fp16"), cores(), batch, device)
        scorer.score(pairs[: 2 * batch])
        rates[batch] = len(pairs) / timed(scorer.score, pairs, device)[0]
    return max(rates, key=lambda batch: rates[batch])


def measure(folder: ModelFolder, pairs: list[Pair], rounds: int, device: str) -> dict[str, Any]:
    """Every case on the same pairs, interleaved; ratios to sentence-transformers in FP32 with its
    defaults.
    """
    few = pairs[: max(64, len(pairs) // 10)]
    batch = best_batch(folder, few, device)
    if device == "cuda":
        folder, _ = tune(folder, VARIANTS, candidates_of(pairs), device=device)
    baseline, fp16 = (
        "sentence-transformers fp32, batch 32",
        f"sentence-transformers fp16, batch {batch}",
    )
    cases: dict[str, Any] = {
        baseline: ReferenceScorer(folder, folder.variant("torch-fp32"), cores(), 32, device),
        fp16: ReferenceScorer(folder, folder.variant("torch-fp16"), cores(), batch, device),
    }
    cases |= {variant: open_scorer(folder.path, variant, device=device) for variant in VARIANTS}
    for scorer in cases.values():
        scorer.score(few)
    daft = None
    if importlib.util.find_spec("daft"):
        daft = in_daft(folder, VARIANTS[1], pairs, device)
    seconds: dict[str, list[float]] = {
        name: [] for name in [*cases, *(["in Daft"] if daft else [])]
    }
    scores, stages = {}, {}
    for _ in range(rounds):
        for name, scorer in cases.items():
            before = scorer.stages
            took, scores[name] = timed(scorer.score, pairs, device)
            stages[name] = scorer.stages.minus(before)
            seconds[name].append(took)
        if daft:
            seconds["in Daft"].append(daft())

    def ratio(name: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[to], seconds[name], strict=True))

    table = {
        name: {
            "pairs_per_s": len(pairs) / statistics.median(took),
            "to_fp32": ratio(name, baseline),
            "to_fp16": ratio(name, fp16),
            "seconds": took,
            **(agreement(scores[baseline], scores[name]) if name in scores else {}),
        }
        for name, took in seconds.items()
    }
    for variant in VARIANTS:  # by the GPU's own clock; tokenising runs beside it
        s = stages[variant]
        table[variant] |= {"tokenise_s": s.encode_s, "copy_s": s.copy_s, "forward_s": s.forward_s}
        table[variant]["plan"] = str(cases[variant].plan)
    if daft:
        table["in Daft"]["of_bare"] = ratio("in Daft", VARIANTS[1])
    tokens = cases[VARIANTS[1]].encoder.encode(few).lengths
    return {
        "pairs": len(pairs),
        "mean_tokens": float(tokens.mean()),
        "rounds": rounds,
        "cases": table,
    }


def gpu_tests() -> dict[str, Any]:
    """The tests marked `gpu`, by pytest."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "-W",
        "default",
        "-p",
        "no:cacheprovider",
        "tests/runtime/scoring/test_cuda.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], flush=True)
    lines = [
        line
        for line in done.stdout.splitlines()
        if line.startswith(("PASSED", "FAILED", "SKIPPED", "ERROR"))
    ]
    return {
        "exit_code": done.returncode,
        "tests": lines,
        "output": done.stdout[-20000:] if done.returncode else "",
    }


def main() -> None:
    """Run it all; the JSON is written anew after each part, so that a cut-off run leaves what it
    has.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu.json"))
    parser.add_argument(
        "--trained",
        type=Path,
        metavar="DIR",
        help="A CrossEncoder, for agreement on trained weights.",
    )
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            "torch sees no CUDA GPU here; --device cpu --pairs 200 tries the script itself"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.utils.logging.set_verbosity_error()
    names = ("torch", "transformers", "sentence_transformers", "tokenizers", "daft")
    found = {
        name: importlib.import_module(name).__version__
        for name in names
        if importlib.util.find_spec(name)
    }
    result: dict[str, Any] = {
        "machine": machine_name(given.device),
        "python": platform.python_version(),
        **found,
    }

    def keep(name: str, value: Any) -> None:
        result[name] = value
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({name: value}, indent=1), flush=True)

    keep("default_plan", str(default_plan("torch-varlen", cores(), given.device)))
    keep("tests", gpu_tests())
    corpus = texts()
    shapes = SHAPES if given.device == "cuda" else TRIAL
    with tempfile.TemporaryDirectory(prefix="xopt-gpu-") as scratch:
        models = {
            name: make_model(Path(scratch) / name.replace(" ", ""), corpus, *shape)
            for name, (*shape, _) in shapes.items()
        }
        shares = {name: share for name, (*_, share) in shapes.items()}
        if given.trained:
            models["trained"], shares["trained"] = given.trained, 0.2
        for name, model in models.items():
            folder = export(
                str(model), Path(scratch) / f"{name.replace(' ', '')}-xopt", torch_only=True
            )
            encoder = open_scorer(folder.path, "torch-fp32").encoder
            sample = [text[:1500] for text in corpus[:2000]]
            counts = encoder.encode([("", text) for text in sample]).lengths
            tokens_a_word = float(counts.sum() / sum(len(text.split()) for text in sample))
            pairs = make_pairs(
                corpus, max(CANDIDATES // 2, int(given.pairs * shares[name])), tokens_a_word
            )
            keep(name, measure(folder, pairs, given.rounds, given.device))
            gc.collect()
            if given.device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
