"""INT8 steered by agreement: which matrix products stay in float, so that the gates hold at the
best speed.

Smoothing strengths are tried first, since they cost nothing. Then each product is quantised
alone, to see how far it moves the scores; as errors of different products add up like independent
ones, the products with the largest squared error for the work that they save are left in float
first, and how many of them it takes is found by bisection.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.graph.structure import write_graph
from xopt.optimize.judge.statistics import FEWEST_QUERIES, PASSED, Gate
from xopt.optimize.judge.verdict import Judged, judge
from xopt.optimize.quantize import Prepared, Recipe, quantized
from xopt.runtime.data.candidates import Candidates
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.scorer import PlannedScorer, open_scorer

__all__ = ["Harm", "Steered", "Step", "steer"]

log = logging.getLogger(__name__)

FP32 = "onnx-fp32"
SMOOTHING = (0.5, 0.8)  # besides the recipe's own
HARM_PAIRS = 96  # scored with each product quantised alone
SPEED_PAIRS, SPEED_ROUNDS = 48, 5

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Harm:
    """Products that read the same tensor, and the change of logits where they alone are INT8.

    `spread` is its standard deviation: a shift of all logits moves no ranking. `work` is their
    share of the multiplications that INT8 makes cheaper.
    """

    products: tuple[str, ...]
    spread: float
    work: float


@dataclass(frozen=True)
class Step:
    """A recipe that was tried: how it agrees, and its speed as a multiple of onnx-fp32's."""

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
    """Find the fastest form of a calibrated recipe that passes `gates` on `candidates`, against
    onnx-fp32.

    `prepared` is the folder's graph, made ready for `recipe`.

    Raises BadInput where the queries are too few, or have not what a gate measures; and
    GateFailed where none passes that is faster than onnx-fp32, and says how close it came.
    """
    if (queries := len(candidates.groups())) < FEWEST_QUERIES:
        raise BadInput(
            f"{candidates.name}: {queries} queries are too few to steer by, it takes {FEWEST_QUERIES}; a fifth of the "
            f"data's do, so give {5 * FEWEST_QUERIES} or more"
        )
    with tempfile.TemporaryDirectory(prefix="xopt-steer-") as scratch:
        copy = Path(scratch) / "model"
        shutil.copytree(
            folder.path,
            copy,
            ignore=shutil.ignore_patterns("*.safetensors", "model_q*", "model_fp16*"),
        )
        trial = _Trial(
            ModelFolder.open(copy),
            prepared,
            candidates,
            [replace(gate, asked=True) for gate in gates],
        )
        steps = [trial.step(recipe)]
        lacking = [held.gate.measure for held in steps[0].judged.gates if not held.interval.queries]
        if lacking:
            raise BadInput(
                f"{candidates.name}: {lacking[0]} cannot be measured on so few candidates a query"
            )
        harms: tuple[Harm, ...] = ()
        if not _passing(steps):
            steps += [trial.step(replace(recipe, smoothing=strength)) for strength in SMOOTHING]
        if not _passing(steps):
            start = max(steps, key=_room).recipe
            harms = _harms(trial, start)
            _bisect(trial, start, harms, steps)
    good = _passing(steps)
    if not good:
        raise GateFailed(_short_of(folder, steps))
    return Steered(tuple(steps), harms, max(good, key=lambda step: step.speed).recipe)


class _Trial:
    """Makes recipes of a prepared graph in a scratch folder, scores with them and judges them."""

    def __init__(
        self, folder: ModelFolder, prepared: Prepared, candidates: Candidates, gates: Sequence[Gate]
    ) -> None:
        self.folder, self.prepared, self.candidates, self.gates = (
            folder,
            prepared,
            candidates,
            gates,
        )
        self.fp32 = open_scorer(folder, FP32)
        log.info("steer: %s scores %d pairs", FP32, len(candidates.rows))
        self.rank = folder.manifest.ranking
        self.expected = self.rank(self.fp32.score(candidates.pairs))

    def scorer(self, recipe: Recipe) -> PlannedScorer:
        made = self.folder.with_variant(
            recipe.variant, lambda file: write_graph(quantized(self.prepared, recipe), file)
        )
        return open_scorer(made, recipe.variant.name, plan=self.fp32.plan)

    def step(self, recipe: Recipe) -> Step:
        scorer = self.scorer(recipe)
        scores = self.rank(scorer.logits(self.candidates.pairs))
        judged = judge(self.candidates, self.expected, scores, self.gates, name="int8")
        step = Step(recipe, judged, self._speed(scorer))
        held = ", ".join(
            f"{g.gate.measure} {g.interval.mean:.3f} {g.verdict}" for g in judged.gates
        )
        log.info(
            "steer: smoothing %g, %d products in float: %s, %.2f x %s",
            recipe.smoothing,
            len(recipe.floats),
            held,
            step.speed,
            FP32,
        )
        return step

    def _speed(self, scorer: PlannedScorer) -> float:
        pairs = self.candidates.pairs[:: max(1, len(self.candidates.rows) // SPEED_PAIRS)]
        ratios = []
        for _ in range(SPEED_ROUNDS):
            fp32, int8 = (_seconds(each, pairs) for each in (self.fp32, scorer))
            ratios.append(fp32 / int8)
        return float(np.median(ratios))


def _seconds(scorer: PlannedScorer, pairs: Sequence[tuple[str, str]]) -> float:
    start = time.perf_counter()
    scorer.logits(pairs)
    return time.perf_counter() - start


def _harms(trial: _Trial, recipe: Recipe) -> tuple[Harm, ...]:
    """Each group of products alone in INT8, the most harmful for its work first."""
    model, wholes = trial.prepared.model, trial.prepared.products
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    groups: dict[str, dict[str, int]] = {}
    readers: dict[str, str] = {}
    for node in model.graph.node:
        if node.name in wholes:
            whole = wholes[node.name]
            lead = readers.setdefault(
                node.input[0].removesuffix("/hot").removesuffix("/cold"), whole
            )
            work = groups.setdefault(lead, {})
            work[whole] = work.get(whole, 0) + int(np.prod(weights[node.input[1]]))
    total = sum(sum(work.values()) for work in groups.values())
    rows = np.random.default_rng(0).permutation(len(trial.candidates.rows))[:HARM_PAIRS]
    pairs = [trial.candidates.pairs[row] for row in rows]
    harms = []
    for number, work in enumerate(groups.values(), start=1):
        others = tuple(whole for other in groups.values() if other is not work for whole in other)
        scores = trial.rank(trial.scorer(replace(recipe, floats=others)).logits(pairs))
        difference = scores.astype(np.float64) - trial.expected[rows]
        harms.append(Harm(tuple(work), float(np.std(difference)), sum(work.values()) / total))
        log.info(
            "steer: %d of %d, %s alone: %.3f",
            number,
            len(groups),
            next(iter(work)),
            harms[-1].spread,
        )
    return tuple(sorted(harms, key=lambda harm: -(harm.spread**2) / harm.work))


def _bisect(trial: _Trial, recipe: Recipe, harms: Sequence[Harm], steps: list[Step]) -> None:
    """Find the fewest of the most harmful groups that have to stay in float."""
    low, high = 1, len(harms) - 1  # with all in float there is no INT8
    while low <= high:
        count = (low + high) // 2
        floats = tuple(name for harm in harms[:count] for name in harm.products)
        steps.append(trial.step(replace(recipe, floats=floats)))
        if steps[-1].judged.verdict == PASSED:
            high = count - 1
        else:
            low = count + 1


def _room(step: Step) -> float:
    """How far within the first gate's bound a step's mean is."""
    held = step.judged.gates[0]
    return (held.interval.mean - held.gate.bound) * (-1 if held.gate.at_most else 1)


def _passing(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if step.judged.verdict == PASSED and step.speed > 1]


def _short_of(folder: ModelFolder, steps: Sequence[Step]) -> str:
    passed = [step for step in steps if step.judged.verdict == PASSED]
    if passed:
        best = max(passed, key=lambda step: step.speed)
        return f"{folder.path}: INT8 that passes the gates is no faster than {FP32} ({best.speed:.2f} x)"
    closest = max(steps, key=_room)
    held = "; ".join(
        f"{result.gate.measure} {result.interval.mean:.4f} [{result.interval.low:.4f}, {result.interval.high:.4f}] "
        f"{result.verdict}, asked {result.gate.bound:g}"
        + (
            f", about {result.queries_needed} queries to steer by would decide"
            if result.queries_needed
            else ""
        )
        for result in closest.judged.gates
    )
    return f"{folder.path}: no INT8 passes, with up to all but one of its products in float: {held}"
