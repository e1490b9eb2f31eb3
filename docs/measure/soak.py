"""An hour of everything at once in one process: does memory stay flat, and do scores stay right?

    PYTHONPATH=tests python docs/measure/soak.py [MINUTES]

Threads score and rerank with shared scorers, and open and close scorers of their own, with texts
of 1 to 8,000 tokens. Models are tiny, of three architectures, on three runtimes. Each score is
compared with that of one thread, alone. Prints memory by the minute. Linux only.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from memory import made, mib

from xopt.runtime import CrossEncoder, open_scorer
from xopt.runtime.folder import Plan

ARCHITECTURES = ("modernbert", "llama", "bert")
VARIANTS = ("onnx-fp32", "onnx-int8", "openvino-fp32", "torch-fp32")
THREADS = 16
TEXTS = 200
MOST_TOKENS = 8000
PAIRS_A_CALL = 4
TOLERANCE = 1e-4  # scores differ by the order of sums, as pairs run together with others
HANGS_S = 300.0
WARM_MINUTES = 10

Model = tuple[Path, str]


@dataclass
class State:
    """What all threads share."""

    pairs: list[tuple[str, str]]
    expected: dict[Model, np.ndarray]
    ends: float
    calls: int = 0
    worst: float = 0.0
    faults: list[str] = field(default_factory=list)
    seen_s: dict[int, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, model: Model, rows: list[int], scores: np.ndarray) -> None:
        """Compare the scores of pairs with those of one thread."""
        difference = float(np.abs(scores - self.expected[model][rows]).max())
        with self.lock:
            self.calls += 1
            self.worst = max(self.worst, difference)
            if not difference <= TOLERANCE:
                self.faults.append(f"{model}: scores of {rows} differ by {difference}")


def texts(count: int) -> list[tuple[str, str]]:
    """Pairs of 1 to 8,000 words, as many short ones as long ones on a scale of logarithms."""
    choose = random.Random(0)
    words = ["index", "search", "data", "query", "rank", "memory", "shard"]
    pairs = []
    for _ in range(count):
        length = round(MOST_TOKENS ** choose.random())
        pairs.append(("data search", " ".join(choose.choices(words, k=length))))
    return pairs


def work(number: int, state: State, shared: dict[Model, CrossEncoder]) -> None:
    """Score, rerank, open and close until the time is over."""
    choose = random.Random(number)
    models = list(shared)
    while time.monotonic() < state.ends and not state.faults:
        state.seen_s[number] = time.monotonic()
        model = choose.choice(models)
        rows = choose.sample(range(len(state.pairs)), choose.randint(1, PAIRS_A_CALL))
        pairs = [state.pairs[row] for row in rows]
        what = choose.choice(("score", "score", "rank", "open"))
        try:
            if what == "score":
                scores = shared[model].scorer.score(pairs)
            elif what == "rank":
                documents = [text for _, text in pairs]
                ranking = shared[model].rank(pairs[0][0], documents, activation_fn=logits)
                scores = np.empty(len(rows))
                for place in ranking:
                    scores[place["corpus_id"]] = place["score"]
            else:
                folder, variant = model
                scores = open_scorer(folder, variant).score(pairs)
            state.check(model, rows, scores)
        except Exception:  # whatever it is, it ends the soak
            state.faults.append(f"{model}, {what}:\n{traceback.format_exc()}")
    del state.seen_s[number]


def logits(scores: object) -> object:
    """An activation that leaves scores as they are."""
    return scores


def watch(state: State) -> list[int]:
    """Return the process's memory, in MiB, by the minute; end where a thread hangs."""
    by_minute = []
    started = time.monotonic()
    while state.seen_s:
        time.sleep(5)
        now = time.monotonic()
        hung = [number for number, seen in state.seen_s.items() if now - seen > HANGS_S]
        if hung:
            sys.exit(f"threads {hung} made no call in {HANGS_S:.0f} s")
        if now - started > 60 * (len(by_minute) + 1):
            by_minute.append(mib("VmRSS"))
            print(
                f"minute {len(by_minute)}: {by_minute[-1]:,} MiB, {state.calls:,} calls", flush=True
            )
    return by_minute


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    pairs = texts(TEXTS)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [made(name, Path(scratch)) for name in ARCHITECTURES]
        models = [(folder, variant) for folder in folders for variant in VARIANTS]
        alone = Plan(callers=1, threads=1, tokens=512)
        expected = {}
        for folder, variant in models:
            expected[folder, variant] = open_scorer(folder, variant, plan=alone).score(pairs)
        shared = {(folder, variant): CrossEncoder(folder, variant) for folder, variant in models}
        state = State(pairs, expected, time.monotonic() + 60 * minutes)
        for number in range(THREADS):
            state.seen_s[number] = time.monotonic()
            threading.Thread(target=work, args=(number, state, shared), daemon=True).start()
        by_minute = watch(state)
    print(f"{state.calls:,} calls; scores differ by at most {state.worst:.1e} from one thread's")
    if len(by_minute) > 2 * WARM_MINUTES:
        early = statistics.median(by_minute[WARM_MINUTES : 2 * WARM_MINUTES])
        late = statistics.median(by_minute[-WARM_MINUTES:])
        print(f"memory, medians: {early:,.0f} MiB in minutes 11 to 20, {late:,.0f} in the last 10")
    if state.faults:
        sys.exit("\n".join(state.faults))


if __name__ == "__main__":
    main()
