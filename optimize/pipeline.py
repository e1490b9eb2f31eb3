"""The main job: export, quantise, tune, validate, bench, recommend."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xopt.optimize.cascade.attempt import CascadeAttempt, try_cascade
from xopt.optimize.export import export
from xopt.optimize.half import FP16, halve
from xopt.optimize.judge.statistics import PASSED, UNDECIDED
from xopt.optimize.judge.verdict import gates_with
from xopt.optimize.model.facts import label_names, rank_label_of
from xopt.optimize.model.source import changed_since, same_model
from xopt.optimize.quantize import SCHEMES, detect_target, quantize, recipe_for
from xopt.optimize.tune import Tuning, contenders, tune
from xopt.optimize.validate import Validation, calibration_queries, validate
from xopt.runtime.bench.bench import BASELINE, Bench, Case, Measured, bench
from xopt.runtime.data.candidates import Candidates, preparing, query_hash
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.files import check_writable
from xopt.runtime.folder import MANIFEST, Manifest, ModelFolder
from xopt.runtime.machine import cores, machine_name, saturates, versions_here
from xopt.runtime.progress import progress
from xopt.runtime.scoring.device import check_device
from xopt.runtime.scoring.variants import BACKENDS, overflows, variants_on

__all__ = ["Outcome", "Recommendation", "optimize", "recommend"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recommendation:
    """The fastest variant that passed its gates, and the code that scores with it.

    `ratio` is its speed over the baseline's. `undecided` has the ratios of faster variants.
    """

    variant: str
    ratio: float
    python: str
    undecided: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What the main job made and found.

    `tunings` is empty where all plans were found before. `cascade` is None where none was tried.
    """

    folder: str
    tunings: tuple[Tuning, ...]
    validation: Validation
    bench: Bench
    recommendation: Recommendation
    cascade: CascadeAttempt | None


def optimize(
    model: str,
    out: Path,
    candidates: Candidates,
    bounds: dict[str, float],
    bench_pairs: int,
    repeat: int,
    device: str = "cpu",
    trust_remote_code: bool = False,
    minutes: float | None = None,
    rank_label: str | None = None,
) -> Outcome:
    """Run the steps that the model folder `out` has not seen yet, and recommend a variant.

    - `candidates`: split into queries to prepare with and queries to judge by.
    - `bounds`: gates other than the usual ones, by measure, such as `{"tau": 0.95}`.
    - `bench_pairs`, `repeat`: pairs and rounds of the bench.
    - `minutes`: draw no more queries for a verdict after this time.
    - `device`, `trust_remote_code`, `rank_label`: those of `export` and `open_scorer`.

    Variants that can win run in every round of the bench, other ones in one. They are judged
    fastest first, until one passes.

    Returns all results. `recommendation.variant` is the one to use, and `recommendation.python`
    the code that scores with it.
    """
    check_device(device)
    # Refuse bad input before the work, not after it.
    check_writable(out)
    gates_with(bounds, bool(candidates.qrels), labels=None)
    preparation = preparing(candidates)
    judging = candidates.split()[1]
    with progress("optimize", total=6, unit="steps") as step:
        step.begin("exporting")
        folder = _exported(model, out, trust_remote_code, rank_label)
        labels = 1 if folder.manifest.ranks else folder.manifest.labels
        gates = gates_with(bounds, bool(candidates.qrels), labels)
        step.begin("making variants")
        folder = _halved(folder) if device == "cuda" else _quantized(folder, preparation)
        variants = variants_on(folder, device)
        step.begin("tuning")
        folder, tunings, fast = _tuned(folder, variants, preparation, device)
        step.begin("timing")
        measured = _benched(folder, judging.head(bench_pairs), variants, fast, repeat, device)
        speeds = {variant: each.pairs_per_s for variant, each in _planned(measured).items()}
        by_speed = sorted(variants, key=lambda variant: -speeds[variant])
        step.begin("judging")
        validation = validate(
            folder, by_speed, judging, gates, device=device, minutes=minutes, first=True
        )
        prepared_with = len(candidates.groups()) - len(judging.groups()) + validation.prepared_with
        validation = replace(validation, prepared_with=prepared_with)
        recommendation = recommend(folder, validation, measured)
        chosen_by = _queries_seen(folder, judging, variants, validation)
        _keep(folder, validation, measured, recommendation, chosen_by)
        step.begin("trying a cascade")
        unseen = candidates.without(chosen_by)
        tried = try_cascade(folder, unseen, recommendation.variant, speeds, minutes, device)
    return Outcome(str(folder.path), tuple(tunings), validation, measured, recommendation, tried)


def _queries_seen(
    folder: ModelFolder, judging: Candidates, variants: Sequence[str], validation: Validation
) -> set[str]:
    """Return the queries that chose the variant, as hashes: they certify no cascade."""
    left = judging.shuffled().without(calibration_queries(folder, variants))
    return {query_hash(row.query) for row in left.between(0, validation.queries).rows}


def _benched(
    folder: ModelFolder,
    candidates: Candidates,
    variants: Sequence[str],
    fast: Sequence[str],
    repeat: int,
    device: str,
) -> Bench:
    """Time all variants, those that are not `fast` in the first round only."""
    cases = _cases(folder, variants)
    every_round = {BASELINE, *(Case(variant, "planned") for variant in fast)}
    once = [case for case in cases if case not in every_round]
    return bench(folder, candidates, cases, repeat=repeat, device=device, once=once)


def _tuned(
    folder: ModelFolder, variants: Sequence[str], candidates: Candidates, device: str
) -> tuple[ModelFolder, list[Tuning], list[str]]:
    """Tune the contenders that have no plan for all cores, and return the contenders last."""
    plans = folder.manifest.plans.get(machine_name(device), {})
    tuned = set(plans)
    if device == "cpu":
        tuned = {name for name in plans if plans[name].callers * plans[name].threads == cores()}
    fast = list(variants)
    if not tuned.issuperset(variants):
        fast = contenders(folder, variants, candidates, device)
    untuned = [variant for variant in fast if variant not in tuned]
    folder, tunings = tune(folder, untuned, candidates, device=device)
    return folder, tunings, fast


def _planned(measured: Bench) -> dict[str, Measured]:
    """Return the results of the strategy `planned`, by variant."""
    cases = [each for each in measured.measured if each.case.strategy == "planned"]
    return {each.case.variant: each for each in cases}


def _cases(folder: ModelFolder, variants: Sequence[str]) -> list[Case]:
    """Return the cases of the bench, with few slow ones."""
    cases = [BASELINE, Case(BASELINE.variant, "concurrent")]
    for name in variants:
        variant = folder.variant(name)
        backend = BACKENDS[variant.backend]
        if variant.precision == "fp32" and backend.in_sentence_transformers(folder):
            cases.append(Case(name, "default"))
        cases.append(Case(name, "planned"))
    return cases


def _keep(
    folder: ModelFolder,
    validation: Validation,
    measured: Bench,
    recommendation: Recommendation,
    chosen_by: set[str],
) -> None:
    """Write the results into the manifest, for scorers and `xopt card`."""
    ratios = {variant: each.ratio for variant, each in _planned(measured).items()}
    variants = {}
    for judged in validation.judged:
        measures = {
            name: {"mean": each.mean, "low": each.low, "high": each.high}
            for name, each in judged.measures.items()
            if each.queries  # else they are NaN
        }
        variants[judged.name] = {
            "verdict": judged.verdict,
            "ratio": ratios.get(judged.name),
            "measures": measures,
        }
    found = {
        "recommended": recommendation.variant,
        "chosen_by": sorted(chosen_by),
        "data": validation.data,
        "queries": validation.queries,
        "pairs": validation.pairs,
        "bench_pairs": measured.pairs,
        "threads": measured.threads,
        "versions": versions_here(),
        "variants": variants,
    }
    machine = machine_name(measured.device)

    def add(manifest: Manifest) -> Manifest:
        return replace(manifest, measured={**manifest.measured, machine: found})

    folder.write(add)


def recommend(folder: ModelFolder, validation: Validation, measured: Bench) -> Recommendation:
    """Return the fastest variant under its plan that passed its gates.

    Raises GateFailed where not even the reference passed.
    """
    verdicts = {judged.name: judged.verdict for judged in validation.judged}
    undecided: dict[str, float] = {}
    fastest_first = list(_planned(measured).values())
    fastest_first.sort(key=lambda each: -each.pairs_per_s)
    for each in fastest_first:
        variant = each.case.variant
        if verdicts[variant] == PASSED:
            python = _python(folder, variant, measured.device)
            return Recommendation(variant, each.ratio, python, undecided)
        if verdicts[variant] == UNDECIDED:
            undecided[variant] = each.ratio
    raise GateFailed(
        f"{folder.path}: not even {BASELINE.variant} passes these gates against itself"
    )


def _python(folder: ModelFolder, variant: str, device: str) -> str:
    where = "" if device == "cpu" else f', device="{device}"'
    python = f'scores = open_scorer("{folder.path}", "{variant}"{where}).score(pairs)'
    if folder.manifest.labels == 1:
        return python
    columns = [f"[:, {label}]" for label in folder.manifest.rank_label or ("LABEL",)]
    if len(columns) == 1:
        return python + columns[0]
    return f"{python}; scores = scores{columns[0]} - scores{columns[1]}"


def _quantized(folder: ModelFolder, candidates: Candidates) -> ModelFolder:
    """Add the INT8 variants that are missing, or overflow on this processor."""
    try:
        target = detect_target()
    except BadInput as error:
        log.warning("quantize: without INT8 (%s)", error)
        return folder
    schemes = ["per-token"]
    if not saturates():  # where it does, static INT8 is slower than FP32
        schemes.append("static")
    for scheme in schemes:
        variant = folder.manifest.variants.get(SCHEMES[scheme])
        if variant is None or overflows(variant):
            log.info("quantize: %s, %s", scheme, target)
            folder = quantize(folder, recipe_for(target, scheme), candidates)
    return folder


def _halved(folder: ModelFolder) -> ModelFolder:
    """Add the FP16 graph where it is missing and onnxruntime can run it."""
    if FP16 in folder.manifest.variants or not BACKENDS["onnx"].gpu_ready():
        return folder
    return halve(folder)


def _exported(
    model: str, out: Path, trust_remote_code: bool, rank_label: str | None
) -> ModelFolder:
    if not (out / MANIFEST).is_file():
        if out.exists():
            raise BadInput(
                f"{out}: exists, and is no model folder; choose another folder with `out=`"
            )
        log.info("export: %s to %s", model, out)
        return export(model, out, trust_remote_code=trust_remote_code, rank_label=rank_label)
    folder = ModelFolder.open(out, trust_remote_code)
    source = folder.manifest.source
    again = f"`xopt export {model} -o {out} --force` makes it again"
    if not same_model(model, source):
        raise BadInput(
            f"{out}: holds {source['model']!r}, not {model!r}; choose another folder with `out=`"
        )
    if changed_since(model, source):
        raise BadInput(f"{model}: changed since {out} was made from it; {again}")
    log.info("export: %s is there already; %s", out, again)
    return folder if rank_label is None else _relabelled(folder, rank_label)


def _relabelled(folder: ModelFolder, rank_label: str) -> ModelFolder:
    """Rank by this label. What was found for another one is dropped."""
    path = folder.path
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    names = label_names(config, folder.manifest.labels)
    label = rank_label_of(names, rank_label, path, str(path))
    if label == folder.manifest.rank_label:
        return folder

    def relabel(manifest: Manifest) -> Manifest:
        return replace(manifest, rank_label=label, measured={}, cascade={})

    return folder.write(relabel)
