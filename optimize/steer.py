"""INT8 steered by agreement: which matrix products stay in float, so that the gates hold.

Smoothing strengths are tried first, since they cost no speed. Then each product is quantised alone
to see how far it moves the scores. Errors of products add up like independent ones, so those with
the largest squared error for the work that they save stay in float first. Bisection finds how many.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xopt.optimize.graph.structure import write_graph
from xopt.optimize.int8.outliers import whole_name
from xopt.optimize.judge.statistics import FEWEST_QUERIES, PASSED, Gate, GateResult
from xopt.optimize.judge.verdict import Judged, judge
from xopt.optimize.quantize import Prepared, Recipe, quantized
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.folder import ModelFolder
from xopt.runtime.progress import Step as Shown
from xopt.runtime.progress import progress
from xopt.runtime.scoring.scorer import PlannedScorer, open_scorer

__all__ = ["Harm", "Steered", "Step", "steer"]

log = logging.getLogger(__name__)

FP32 = "onnx-fp32"
SMOOTHING = (0.5, 0.8)  # besides the recipe's own
HARM_PAIRS = 96  # scored with each product quantised alone
SPEED_PAIRS = 48
SPEED_ROUNDS = 5


@dataclass(frozen=True)
class Harm:
    """Products that read the same tensor, and what they alone in INT8 do to the logits.

    `spread`: the standard deviation of the change. `work`: their share of the multiplications.
    """

    products: tuple[str, ...]
    spread: float
    work: float


@dataclass(frozen=True)
class Step:
    """A recipe that was tried, its agreement, and its speed as a multiple of onnx-fp32's."""

    recipe: Recipe
    judged: Judged
    speed: float


@dataclass(frozen=True)
class Steered:
    """What was tried, in order, and the recipe chosen: the fastest that passes."""

    steps: tuple[Step, ...]
    harms: tuple[Harm, ...]
    recipe: Recipe


def steer(
    folder: ModelFolder,
    prepared: Prepared,
    recipe: Recipe,
    candidates: Candidates,
    gates: Sequence[Gate],
) -> Steered:
    """Find the fastest form of `recipe` that passes `gates` on `candidates`, against onnx-fp32.

    `prepared`: the folder's graph, made ready for `recipe`. Raises BadInput where queries are too
    few or a gate cannot measure them, and GateFailed where no form passes that is faster than
    onnx-fp32.
    """
    queries = len(candidates.groups())
    if queries < FEWEST_QUERIES:
        raise BadInput(
            f"{candidates.name}: {queries} queries are too few to steer by, it takes "
            f"{FEWEST_QUERIES}; a fifth of the data's queries are used, so give "
            f"{5 * FEWEST_QUERIES} or more"
        )
    asked_gates = [replace(gate, asked=True) for gate in gates]
    with tempfile.TemporaryDirectory(prefix="xopt-steer-") as scratch:
        copy = Path(scratch) / "model"
        not_needed = shutil.ignore_patterns("*.safetensors", "model_q*", "model_fp16*")
        shutil.copytree(folder.path, copy, ignore=not_needed)
        with progress("steer", unit="recipes") as shown:
            trial = _Trial(ModelFolder.open(copy), prepared, candidates, asked_gates, shown)
            steps, harms = _search(trial, recipe)
    passing = _passing(steps)
    if not passing:
        raise GateFailed(_why_none_passes(folder, steps))
    fastest = max(passing, key=lambda step: step.speed)
    return Steered(tuple(steps), harms, fastest.recipe)


def _search(trial: _Trial, recipe: Recipe) -> tuple[list[Step], tuple[Harm, ...]]:
    steps = [trial.step(recipe)]
    for result in steps[0].judged.gates:
        if not result.interval.queries:
            raise BadInput(
                f"{trial.candidates.name}: {result.gate.measure} cannot be measured on so few "
                "candidates a query; give data with more, or leave this gate out"
            )
    if _passing(steps):
        return steps, ()
    steps += [trial.step(replace(recipe, smoothing=strength)) for strength in SMOOTHING]
    if _passing(steps):
        return steps, ()
    closest = max(steps, key=_margin).recipe
    harms = _harms(trial, closest)
    steps += _bisect(trial, closest, harms)
    return steps, harms


class _Trial:
    """Makes recipes of a prepared graph in a scratch folder, scores with them and judges them."""

    def __init__(
        self,
        folder: ModelFolder,
        prepared: Prepared,
        candidates: Candidates,
        gates: Sequence[Gate],
        shown: Shown,
    ) -> None:
        self.folder = folder
        self.prepared = prepared
        self.candidates = candidates
        self.gates = gates
        self.shown = shown
        self.fp32 = open_scorer(folder, FP32)
        log.info("steer: %s scores %d pairs", FP32, len(candidates.rows))
        self.rank = folder.manifest.ranking
        self.expected = self.rank(self.fp32.score(candidates.pairs))

    def scorer(self, recipe: Recipe) -> PlannedScorer:
        graph = quantized(self.prepared, recipe)
        made = self.folder.with_variant(recipe.variant, lambda file: write_graph(graph, file))
        return open_scorer(made, recipe.variant.name, plan=self.fp32.plan)

    def step(self, recipe: Recipe) -> Step:
        self.shown.note = f"smoothing {recipe.smoothing:g}, {len(recipe.floats)} products in float"
        scorer = self.scorer(recipe)
        scores = self.rank(scorer.logits(self.candidates.pairs))
        judged = judge(self.candidates, self.expected, scores, self.gates, name="int8")
        step = Step(recipe, judged, self._speed(scorer))
        self.shown.advance()
        results = [f"{r.gate.measure} {r.interval.mean:.3f} {r.verdict}" for r in judged.gates]
        log.info(
            "steer: smoothing %g, %d products in float: %s, %.2f x %s",
            recipe.smoothing,
            len(recipe.floats),
            ", ".join(results),
            step.speed,
            FP32,
        )
        return step

    def _speed(self, scorer: PlannedScorer) -> float:
        """The median speed of rounds in turn with FP32, as a multiple of FP32's."""
        every = max(1, len(self.candidates.rows) // SPEED_PAIRS)
        pairs = self.candidates.pairs[::every]
        ratios = []
        for _ in range(SPEED_ROUNDS):
            fp32_seconds = _seconds(self.fp32, pairs)
            ratios.append(fp32_seconds / _seconds(scorer, pairs))
        return float(np.median(ratios))


def _seconds(scorer: PlannedScorer, pairs: Sequence[tuple[str, str]]) -> float:
    start = time.perf_counter()
    scorer.logits(pairs)
    return time.perf_counter() - start


def _harms(trial: _Trial, recipe: Recipe) -> tuple[Harm, ...]:
    """Measure each group of products alone in INT8, the most harmful for its work first."""
    groups = _groups(trial.prepared)
    products = [name for group in groups for name in group]
    total = sum(group.total() for group in groups)
    rows = np.random.default_rng(0).permutation(len(trial.candidates.rows))[:HARM_PAIRS]
    pairs = [trial.candidates.pairs[row] for row in rows]
    harms = []
    trial.shown.note = "each product alone in INT8"
    with progress("trying products", len(groups), "products", work=len(groups)) as shown:
        for group in groups:
            others = tuple(name for name in products if name not in group)
            scores = trial.rank(trial.scorer(replace(recipe, floats=others)).logits(pairs))
            change = scores.astype(np.float64) - trial.expected[rows]
            harm = Harm(tuple(group), float(np.std(change)), group.total() / total)
            harms.append(harm)
            shown.advance()
            log.info("steer: %s alone: %.3f", harm.products[0], harm.spread)
    return tuple(sorted(harms, key=lambda harm: -(harm.spread**2) / harm.work))


def _groups(prepared: Prepared) -> list[Counter[str]]:
    """The multiplications a token of each product, grouped by the tensor that they read.

    The parts of a split feed-forward block count as one.
    """
    weights = {tensor.name: tensor.dims for tensor in prepared.model.graph.initializer}
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for node in prepared.model.graph.node:
        if node.name in prepared.products:
            x, weight = node.input
            product = prepared.products[node.name]
            groups[whole_name(x)][product] += int(np.prod(weights[weight]))
    return list(groups.values())


def _bisect(trial: _Trial, recipe: Recipe, harms: Sequence[Harm]) -> list[Step]:
    """Find the fewest of the most harmful groups that have to stay in float."""
    steps = []
    low = 1
    high = len(harms) - 1  # with all in float there is no INT8
    trial.shown.total = trial.shown.done + high.bit_length()
    trial.shown.unit = "recipes at most"
    while low <= high:
        count = (low + high) // 2
        floats = tuple(name for harm in harms[:count] for name in harm.products)
        step = trial.step(replace(recipe, floats=floats))
        steps.append(step)
        if step.judged.verdict == PASSED:
            high = count - 1
        else:
            low = count + 1
    return steps


def _margin(step: Step) -> float:
    """How far within the first gate's bound a step's mean is."""
    result = step.judged.gates[0]
    margin = result.interval.mean - result.gate.bound
    return -margin if result.gate.at_most else margin


def _passing(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if step.judged.verdict == PASSED and step.speed > 1]


def _why_none_passes(folder: ModelFolder, steps: Sequence[Step]) -> str:
    passed = [step for step in steps if step.judged.verdict == PASSED]
    if passed:
        best = max(step.speed for step in passed)
        return f"{folder.path}: INT8 that passes the gates is no faster than {FP32} ({best:.2f} x)"
    closest = max(steps, key=_margin)
    results = "; ".join(_in_words(result) for result in closest.judged.gates)
    return (
        f"{folder.path}: no INT8 passes, with up to all but one of its products in float: {results}"
    )


def _in_words(result: GateResult) -> str:
    interval = result.interval
    words = (
        f"{result.gate.measure} {interval.mean:.4f} [{interval.low:.4f}, {interval.high:.4f}] "
        f"{result.verdict}, asked {result.gate.bound:g}"
    )
    if result.queries_needed:
        words += f", about {result.queries_needed} queries to steer by would decide"
    return words
