"""Where the time of a run went, what held it back, and what to change.

The wall time is split by what the scorers and Daft report; the forwards are held against what
this machine's cores and memory can do (a roofline: Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace

from xopt.runtime.bench.ceilings import Ceilings
from xopt.runtime.folder import ModelFolder, Variant
from xopt.runtime.scoring.profile import Profile
from xopt.runtime.scoring.stages import Stages

__all__ = ["STAGES", "Explained", "Finding", "ModelShape", "Observed", "Split", "explain"]

WORTH = 1.15  # a change that gives less is not named
IDLE = 0.8  # of the cores: busy below this, some idle
EFFICIENT = 0.5  # of the ceiling: what planned forwards reach
OVERSUBSCRIBED = 2.0  # threads that want to run, for each core
STAGES = {  # of `Split`, in words
    "start_up_s": "start-up",
    "daft_s": "Daft",
    "tokenise_s": "tokenising",
    "forward_s": "forward",
    "padding_s": "padding",
    "waiting_s": "waiting",
    "other_s": "other",
}
NAMES = {  # in config.json, by architecture
    "layers": ("num_hidden_layers", "n_layers"),
    "hidden": ("hidden_size", "dim"),
    "intermediate": ("intermediate_size", "hidden_dim"),
}
# three products in a feed-forward block
GATED = ("modernbert", "gemma", "llama", "mistral", "qwen2", "qwen3")
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class ModelShape:
    """What a forward's work follows from. `narrowed`: the last layer sees one row a pair, but for
    key and value.

    `absorbed`: it makes no key and value either. `queries` is the width of all heads, `keys` that
    of keys and of values, less where heads share them.
    """

    layers: int
    hidden: int
    intermediate: int
    gated: bool
    narrowed: bool
    absorbed: bool
    queries: int
    keys: int

    @staticmethod
    def of(folder: ModelFolder, variant: Variant) -> ModelShape | None:
        """The shape of a variant; None where config.json does not tell."""
        config = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
        found = {
            name: config[key]
            for name, keys in NAMES.items()
            for key in keys
            if isinstance(config.get(key), int)
        }
        if len(found) < len(NAMES):
            return None
        fp32 = folder.manifest.variants.get("onnx-fp32")
        counts = ("one_row_matmuls", "first_row_matmuls")  # the latter of older folders
        narrowed = variant.backend != "torch" and bool(
            fp32 and any(fp32.recipe.get(name) for name in counts)
        )
        absorbed = variant.file.endswith(".onnx") and bool(fp32 and fp32.recipe.get("absorbed"))
        heads = config.get("num_attention_heads") or config.get("n_heads") or 1
        size = config.get("head_dim") or found["hidden"] // heads
        widths = {
            "queries": heads * size,
            "keys": (config.get("num_key_value_heads") or heads) * size,
        }
        gated = config.get("model_type") in GATED
        return ModelShape(**found, gated=gated, narrowed=narrowed, absorbed=absorbed, **widths)

    @property
    def weights(self) -> int:
        """The weights of the products that see every token."""
        layer = (
            2 * self.hidden * (self.queries + self.keys)
            + (3 if self.gated else 2) * self.hidden * self.intermediate
        )
        made = 2 * self.hidden * self.keys if self.narrowed and not self.absorbed else 0
        return (self.layers - self.narrowed) * layer + made

    def operations(self, padded_tokens: float, squared_tokens: float) -> float:
        """Multiplications and additions of the products and of attention."""
        attention = 4 * (self.layers - self.narrowed) * self.queries * squared_tokens
        return 2 * padded_tokens * self.weights + attention


@dataclass(frozen=True)
class Observed:
    """A run as it was measured.

    window_s: from the first call to the result. calls_s: of it, the time in which a call ran;
    calls_sum_s: their durations summed. start_up_s: before the first call, of every query where
    `reopened`.
    """

    variant: Variant
    planned: bool
    start_up_s: float
    reopened: bool
    window_s: float
    calls_s: float
    calls_sum_s: float
    stages: Stages
    processes: int
    threads: int
    cores: int
    mean_cores: float


@dataclass(frozen=True)
class Split:
    """Seconds of wall time. forward_s is text, padding_s what went into tokens that are none,
    waiting_s callers without work, other_s the scorer's own Python, daft_s everything outside the
    calls: Daft, and reading.
    """

    start_up_s: float
    daft_s: float
    tokenise_s: float
    forward_s: float
    padding_s: float
    waiting_s: float
    other_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return float(sum(getattr(self, each.name) for each in fields(self)))


@dataclass(frozen=True)
class Finding:
    """What holds a run back, in a word and in a sentence or two with the way out, and what that
    is expected to give.

    `gain` is a factor on the speed, at most; 1 where there is nothing to gain.
    """

    name: str
    gain: float
    advice: str


@dataclass(frozen=True)
class Explained:
    """A run's split, its forwards against the ceilings, and the findings, the largest first.

    gflops: 10^9 operations a second within forwards, padding included. of_ceiling: their share of
    what the cores can do. memory_gbs: 10^9 bytes a second of weights read. None where the model's
    shape is unknown. kinds: the shares of a forward's time by kind of operation, and
    products_of_ceiling how near the products among them come to what the cores can do; empty and
    None where nothing was profiled.
    """

    split: Split
    gflops: float | None
    of_ceiling: float | None
    memory_gbs: float | None
    findings: tuple[Finding, ...]
    kinds: dict[str, float] = field(default_factory=dict)
    products_of_ceiling: float | None = None

    @property
    def bottleneck(self) -> Finding:
        """The one that holds it back most."""
        return self.findings[0]


def explain(
    run: Observed, shape: ModelShape | None, ceilings: Ceilings, profiled: Profile | None = None
) -> Explained:
    """Split a run and find what holds it back."""
    split = _split(run)
    busy_s = split.forward_s + split.padding_s
    gflops = of_ceiling = memory = None
    if shape is not None and busy_s > 0:
        gflops = (
            shape.operations(run.stages.padded_tokens, run.stages.squared_tokens) / busy_s / 1e9
        )
        of_ceiling = gflops / _ceiling(run.variant.precision, ceilings)
        memory = run.stages.forwards * shape.weights * BYTES[run.variant.precision] / busy_s / 1e9
    found = [f for f in _findings(run, split, of_ceiling, memory, ceilings) if f.gain >= WORTH]
    findings = sorted(found, key=lambda finding: -finding.gain) or [
        _at_the_ceiling(run, of_ceiling, ceilings)
    ]
    made = Explained(split, gflops, of_ceiling, memory, tuple(findings))
    if profiled is None:
        return made
    reached = None
    if shape is not None and profiled.seconds.get("products"):
        rate = 2 * profiled.padded_tokens * shape.weights / profiled.seconds["products"] / 1e9
        reached = rate / (
            _ceiling(run.variant.precision, ceilings) * profiled.threads / ceilings.threads
        )
    return replace(made, kinds=profiled.shares, products_of_ceiling=reached)


def _split(run: Observed) -> Split:
    stages, share = run.stages, run.calls_s / run.calls_sum_s  # calls of several processes overlap
    ran, encoded = stages.run_s * share, stages.encode_s * share
    busy = ran * (stages.forward_s / stages.caller_s if stages.caller_s else 0)
    padding = busy * (1 - stages.text_tokens / stages.padded_tokens if stages.padded_tokens else 0)
    return Split(
        start_up_s=run.start_up_s,
        daft_s=run.window_s - run.calls_s,
        tokenise_s=encoded,
        forward_s=busy - padding,
        padding_s=padding,
        waiting_s=ran - busy,
        other_s=max(0.0, run.calls_s - ran - encoded),
    )


def _ceiling(precision: str, ceilings: Ceilings) -> float:
    of = {"int8": ceilings.int8_gflops, "bf16": ceilings.bf16_gflops or ceilings.fp32_gflops}
    return of.get(precision, ceilings.fp32_gflops)


def _findings(
    run: Observed, split: Split, of_ceiling: float | None, memory: float | None, ceilings: Ceilings
) -> list[Finding]:
    """Everything that could be better, whatever it would give."""
    # what is opened once is paid once
    total = split.total_s if run.reopened else split.total_s - split.start_up_s
    busy = split.forward_s + split.padding_s
    asked = run.processes * run.threads / run.cores
    used = run.mean_cores * run.window_s / max(run.calls_s, 1e-9) / run.cores

    def faster(part: float, factor: float = math.inf) -> float:
        """How much faster the whole is where a part of its time takes that many times less
        (Amdahl 1967).
        """
        return total / max(total - part + part / factor, 1e-9)

    found = [
        Finding(
            "tokenising",
            faster(split.tokenise_s),
            f"Tokenising takes {split.tokenise_s / total:.0%} of the time: tokenise once and keep the tokens, or give "
            "it more threads.",
        ),
        Finding(
            "reading",
            faster(split.daft_s),
            "The model waits for its input: read ahead, or give Daft larger batches.",
        ),
    ]
    if not run.planned:
        found.append(
            Finding(
                "padding",
                faster(split.padding_s),
                f"{split.padding_s / max(busy, 1e-9):.0%} of the tokens computed are padding: sort pairs by length "
                "over many rows, as the strategy `planned` does.",
            )
        )
    if run.reopened:
        found.append(
            Finding(
                "loading",
                faster(split.start_up_s),
                "Every query starts worker processes and opens the model again: keep one instance in Daft's process "
                "(no max_concurrency), or put more pairs into a query.",
            )
        )
    if asked >= OVERSUBSCRIBED:
        found.append(
            Finding(
                "oversubscribed threads",
                faster(busy, min(asked, 1 / of_ceiling if of_ceiling else asked)),
                f"{run.processes} processes with {run.threads} threads each share {run.cores} cores and wait for each "
                "other: let processes x threads be the number of cores, or use `planned`.",
            )
        )
    elif used < IDLE:
        found.append(
            Finding(
                "idle threads",
                faster(run.calls_s, 1 / max(used, 1e-9)),
                f"{used * run.cores:.1f} of {run.cores} cores work while the model runs: give it all of them "
                "(`--threads`, or callers x threads by `xopt tune`).",
            )
        )
    if memory is not None and memory > ceilings.memory_gbs / 2:
        found.append(
            Finding(
                "memory",
                faster(busy * min(memory / ceilings.memory_gbs, 1.0)),
                "Forwards are so small that reading the weights takes the time: score more pairs in a call.",
            )
        )
    if (
        of_ceiling is not None
        and of_ceiling < EFFICIENT
        and not run.planned
        and asked < OVERSUBSCRIBED
    ):
        found.append(
            Finding(
                "batching",
                faster(busy, EFFICIENT / of_ceiling),
                f"The products reach {of_ceiling:.0%} of what the cores can do: large padded batches spill the caches "
                "and wait at every operator. Use `planned`: forwards of some 512 tokens, a caller a core.",
            )
        )
    return found


def _at_the_ceiling(run: Observed, of_ceiling: float | None, ceilings: Ceilings) -> Finding:
    reached = (
        f"The products reach {of_ceiling:.0%} of what the cores can do. "
        if of_ceiling is not None
        else ""
    )
    gain = ceilings.int8_gflops / ceilings.fp32_gflops
    if run.variant.precision == "fp32" and gain >= WORTH:
        return Finding(
            "compute",
            gain,
            f"{reached}INT8 products are {gain:.1f} times as fast here: `xopt quantize --int8`.",
        )
    return Finding(
        "compute",
        1.0,
        f"{reached}Fewer candidates, a smaller model or a GPU would help; threads will not.",
    )
