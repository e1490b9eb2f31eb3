"""Where the time of a run went, what held it back, and what to change.

The wall time is split by what the scorers and Daft report. The forwards are compared with what
this machine's cores and memory can do (a roofline: Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from xopt.runtime.bench.ceilings import Ceilings
from xopt.runtime.bench.shape import ModelShape
from xopt.runtime.folder import Variant
from xopt.runtime.scoring.profile import Profile
from xopt.runtime.scoring.stages import Stages

__all__ = ["STAGES", "Explained", "Finding", "Observed", "Split", "explain", "outlook"]

NAMED = 0.04  # of a forward: what takes less is not named
WORTH = 1.15  # a change that gives less is not named
IDLE = 0.8  # of the cores: where fewer are busy, some are idle
EFFICIENT = 0.5  # of the ceiling: what planned forwards reach
OVERSUBSCRIBED = 2.0  # threads that want to run, for each core
TINY = 1e-9  # instead of a zero to divide by
STAGES = {  # of `Split`, in words
    "start_up_s": "start-up",
    "daft_s": "Daft",
    "tokenise_s": "tokenising",
    "forward_s": "forward",
    "padding_s": "padding",
    "waiting_s": "waiting",
    "other_s": "other",
}
ADVICE = {
    "tokenising": "Tokenising takes {tokenising:.0%} of the time: tokenise once and keep the "
    "tokens, or give it more threads.",
    "reading": "The model waits for its input: read ahead, or give Daft larger batches.",
    "padding": "{padding:.0%} of the tokens computed are padding: sort pairs by length over many "
    "rows, as the strategy `planned` does.",
    "loading": "Every query starts worker processes and opens the model again: keep one instance "
    "in Daft's process (no max_concurrency), or put more pairs into a query.",
    "oversubscribed threads": "{processes} processes with {threads} threads each share {cores} "
    "cores and wait for each other: let processes x threads be the number of cores, or use "
    "`planned`.",
    "idle threads": "{busy_cores:.1f} of {cores} cores work while the model runs: give it "
    "threads for all of them, or let `xopt tune` find callers x threads.",
    "memory": "Forwards are so small that reading the weights takes the time: score more pairs "
    "in a call.",
    "batching": "Forwards reach {of_ceiling:.0%} of what the cores can do: large padded "
    "batches spill the caches and wait at every operator. Use `planned`: forwards of some 512 "
    "tokens, a caller a core.",
}
# Findings whose advice the strategy `planned` follows.
MENDED_BY_PLAN = {
    "reading",
    "padding",
    "loading",
    "oversubscribed threads",
    "idle threads",
    "memory",
    "batching",
}
MENDED_BY_SMALL_BATCHES = {"padding", "batching"}
QUANTIZED = ("onnx-int8", "openvino-int8")  # what `xopt quantize --int8` makes
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Observed:
    """A run as it was measured.

    window_s: the wall time from the first call to the result.
    calls_s: the part of it in which a call ran. calls_sum_s: the calls' durations, added up.
    start_up_s: the time before the first call, spent by every query where `reopened`.
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

    @property
    def threads_a_core(self) -> float:
        return self.processes * self.threads / self.cores

    @property
    def busy_cores(self) -> float:
        """Cores that work while a call runs."""
        return self.mean_cores * self.window_s / self.calls_s


@dataclass(frozen=True)
class Split:
    """Seconds of wall time.

    daft_s: everything outside the calls, Daft and its reading.
    forward_s: forwards, for tokens that are text. padding_s: forwards, for tokens that are none.
    waiting_s: callers without work. other_s: the scorer's own Python.
    """

    start_up_s: float
    daft_s: float
    tokenise_s: float
    forward_s: float
    padding_s: float
    waiting_s: float
    other_s: float

    @property
    def busy_s(self) -> float:
        return self.forward_s + self.padding_s

    @property
    def total_s(self) -> float:
        return float(sum(getattr(self, part.name) for part in fields(self)))


@dataclass(frozen=True)
class Finding:
    """What holds a run back, and the way out, which speeds it up `gain` times at most."""

    name: str
    gain: float
    advice: str


@dataclass(frozen=True)
class Explained:
    """A run's split, its forwards against the ceilings, and the findings, the largest first.

    gflops: 10^9 operations a second within forwards, padding included.
    of_ceiling: their share of what the cores can do.
    memory_gbs: 10^9 bytes of weights read a second.
    kinds: the shares of a forward's time by kind of operation, where it was profiled.
    products_of_ceiling: the share of the ceiling that the products alone reach there.
    Rates are None where the model's shape is unknown.
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
        return self.findings[0]


def explain(
    run: Observed, shape: ModelShape | None, ceilings: Ceilings, profiled: Profile | None = None
) -> Explained:
    """Split a run's time, and find what holds it back."""
    split = _split(run)
    ceiling = _ceiling_gflops(run.variant.precision, ceilings)
    gflops = of_ceiling = memory_gbs = None
    if shape is not None and split.busy_s > 0:
        operations = shape.operations(run.stages.padded_tokens, run.stages.squared_tokens)
        gflops = operations / split.busy_s / 1e9
        of_ceiling = gflops / ceiling
        read_bytes = run.stages.forwards * shape.weights * BYTES[run.variant.precision]
        memory_gbs = read_bytes / split.busy_s / 1e9
    products_of_ceiling = None
    if profiled is not None and shape is not None and profiled.seconds.get("products"):
        operations = 2 * profiled.padded_tokens * shape.weights
        available = ceiling * profiled.threads / ceilings.threads
        products_of_ceiling = operations / profiled.seconds["products"] / 1e9 / available
    explained = Explained(
        split=split,
        gflops=gflops,
        of_ceiling=of_ceiling,
        memory_gbs=memory_gbs,
        findings=tuple(_findings(run, split, ceilings, of_ceiling, memory_gbs)),
        kinds=profiled.shares if profiled else {},
        products_of_ceiling=products_of_ceiling,
    )
    if explained.findings:
        return explained
    return replace(explained, findings=(_compute(run, explained, ceilings),))


def outlook(case: str, findings: Sequence[tuple[str, float]], speeds: Mapping[str, float]) -> str:
    """Say what following a case's findings gives, each a name and the most that it gains.

    speeds: by `VARIANT/STRATEGY`, of all cases of the run. Where one of them does as a finding
    advises, its speed stands in place of the bound.
    """
    names: dict[str, list[str]] = {}  # by what they give
    for name, gain in findings:
        names.setdefault(_prospect(case, name, gain, speeds), []).append(name)
    first = next(iter(names))
    also = names.pop(first)[1:]
    also += [f"{' and '.join(others)} ({prospect})" for prospect, others in names.items()]
    said = f"{first[:1].upper()}{first[1:]}." if first else ""
    if also:
        said += f" Also: {', '.join(also)}."
    return said


def _prospect(case: str, finding: str, gain: float, speeds: Mapping[str, float]) -> str:
    if gain <= 1:
        return ""
    followed = _follower(case, finding, speeds)
    if followed:
        return f"measured: {followed} is {speeds[followed] / speeds[case]:.1f} times as fast"
    return f"at most {gain:.1f} times as fast"


def _follower(case: str, finding: str, speeds: Mapping[str, float]) -> str | None:
    """Return the case that does as a finding advises, the fastest of several; None without one."""
    variant, _, strategy = case.rpartition("/")
    planned = [name for name in speeds if name.endswith("/planned")]
    found = []
    if finding == "compute":
        found = [name for name in planned if name.startswith(QUANTIZED)]
    elif finding in MENDED_BY_PLAN and strategy not in ("planned", "cascade"):
        found = [name for name in planned if name == f"{variant}/planned"]
    if not found and finding in MENDED_BY_SMALL_BATCHES:  # what other tools can do
        small = [f"{variant}/{batch}" for batch in ("batch-8", "batch-1")]
        found = [name for name in small if speeds.get(name, 0.0) > speeds[case]]
    return max(found, key=lambda name: speeds[name], default=None)


def _split(run: Observed) -> Split:
    stages = run.stages
    share = run.calls_s / run.calls_sum_s  # calls of several processes overlap
    ran_s = stages.run_s * share
    tokenise_s = stages.encode_s * share
    busy_s = ran_s * stages.forward_s / stages.caller_s if stages.caller_s else 0.0
    padding_s = 0.0
    if stages.padded_tokens:
        padding_s = busy_s * (1 - stages.text_tokens / stages.padded_tokens)
    return Split(
        start_up_s=run.start_up_s,
        daft_s=run.window_s - run.calls_s,
        tokenise_s=tokenise_s,
        forward_s=busy_s - padding_s,
        padding_s=padding_s,
        waiting_s=ran_s - busy_s,
        other_s=max(0.0, run.calls_s - ran_s - tokenise_s),
    )


def _ceiling_gflops(precision: str, ceilings: Ceilings) -> float:
    if precision == "int8":
        return ceilings.int8_gflops
    if precision == "bf16" and ceilings.bf16_gflops:
        return ceilings.bf16_gflops
    return ceilings.fp32_gflops


def _findings(
    run: Observed,
    split: Split,
    ceilings: Ceilings,
    of_ceiling: float | None,
    memory_gbs: float | None,
) -> list[Finding]:
    """Return what would speed the run up by `WORTH` at least, the largest gain first."""
    total_s = _lasting_s(run, split)
    facts = {
        "tokenising": split.tokenise_s / total_s,
        "padding": split.padding_s / max(split.busy_s, TINY),
        "processes": run.processes,
        "threads": run.threads,
        "cores": run.cores,
        "busy_cores": run.busy_cores,
        "of_ceiling": of_ceiling,
    }
    found = []
    for name, (part_s, factor) in _slow_parts(run, split, ceilings, of_ceiling, memory_gbs).items():
        gain = total_s / max(total_s - part_s + part_s / factor, TINY)  # Amdahl 1967
        if gain >= WORTH:
            found.append(Finding(name, gain, ADVICE[name].format(**facts)))
    return sorted(found, key=lambda finding: -finding.gain)


def _slow_parts(
    run: Observed,
    split: Split,
    ceilings: Ceilings,
    of_ceiling: float | None,
    memory_gbs: float | None,
) -> dict[str, tuple[float, float]]:
    """Return parts of the time in seconds, and how many times faster each could be at most."""
    parts = {"tokenising": (split.tokenise_s, math.inf), "reading": (split.daft_s, math.inf)}
    if not run.planned:
        parts["padding"] = (split.padding_s, math.inf)
    if run.reopened:
        parts["loading"] = (split.start_up_s, math.inf)
    busy = run.busy_cores / run.cores
    if run.threads_a_core >= OVERSUBSCRIBED:
        at_most = 1 / of_ceiling if of_ceiling else math.inf
        parts["oversubscribed threads"] = (split.busy_s, min(run.threads_a_core, at_most))
    elif busy < IDLE:
        parts["idle threads"] = (run.calls_s, 1 / max(busy, TINY))
    if memory_gbs is not None and memory_gbs > ceilings.memory_gbs / 2:
        share = min(memory_gbs / ceilings.memory_gbs, 1.0)
        parts["memory"] = (split.busy_s * share, math.inf)
    unhindered = not run.planned and run.threads_a_core < OVERSUBSCRIBED
    if of_ceiling is not None and of_ceiling < EFFICIENT and unhindered:
        parts["batching"] = (split.busy_s, EFFICIENT / of_ceiling)
    return parts


def _compute(run: Observed, explained: Explained, ceilings: Ceilings) -> Finding:
    """Return what helps where nothing else holds the run back.

    INT8 makes the products faster, and nothing else. Where no profile tells their share, it is
    taken for all of a forward.
    """
    times = ceilings.int8_gflops / ceilings.fp32_gflops
    total_s = _lasting_s(run, explained.split)
    part_s = explained.split.busy_s * explained.kinds.get("products", 1.0)
    gain = total_s / max(total_s - part_s + part_s / times, TINY)  # Amdahl 1967
    if run.variant.precision == "fp32" and gain >= WORTH:
        advice = f"INT8 products are {times:.1f} times as fast here: `xopt quantize --int8`."
    else:
        gain = 1.0
        advice = "Fewer candidates, a smaller model or a GPU would help; threads will not."
    return Finding("compute", gain, f"{_reached(explained)}{advice}")


def _reached(explained: Explained) -> str:
    """Say what a forward's time goes into, and how near it comes to the ceiling."""
    kinds = dict(explained.kinds)
    products = kinds.pop("products", None)
    if products is None:
        if explained.of_ceiling is None:
            return ""
        return f"Forwards reach {explained.of_ceiling:.0%} of what the cores can do. "
    said = f"Products take {products:.0%} of a forward"
    if explained.products_of_ceiling is not None:
        said += f", at {explained.products_of_ceiling:.0%} of what the cores can do"
    rest = [f"{kind} {share:.0%}" for kind, share in kinds.items() if share >= NAMED]
    return f"{said}. " + (f"The rest is {', '.join(rest)}. " if rest else "")


def _lasting_s(run: Observed, split: Split) -> float:
    """Return the time of a long job: what is opened once is no part of it."""
    return split.total_s if run.reopened else split.total_s - split.start_up_s
