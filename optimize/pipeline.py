"""The main job: export, quantise, tune, validate, bench, recommend."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xopt.optimize.cascade.attempt import Tried, try_cascade
from xopt.optimize.export import export
from xopt.optimize.half import FP16, halve
from xopt.optimize.judge.statistics import PASSED, UNDECIDED
from xopt.optimize.judge.verdict import gates_with
from xopt.optimize.model.facts import label_names, rank_label_of
from xopt.optimize.model.source import changed_since, same_model
from xopt.optimize.quantize import SCHEMES, detect_target, quantize, recipe_for
from xopt.optimize.tune import Tuning, contenders, tune
from xopt.optimize.validate import Validation, validate
from xopt.runtime.bench.bench import BASELINE, Bench, Case, bench
from xopt.runtime.data.candidates import Candidates, preparing, query_hash
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.files import check_writable
from xopt.runtime.folder import MANIFEST, ModelFolder
from xopt.runtime.machine import cores, machine_name, saturates, versions_here
from xopt.runtime.scoring.device import check_device
from xopt.runtime.scoring.variants import BACKENDS, overflows, variants_on

__all__ = ["Outcome", "Recommendation", "optimize", "recommend"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recommendation:
    """The fastest variant that passed its gates, how much faster than the baseline it is, and how
    to use it.

    `undecided` are faster still, with their ratios; the queries were too few to tell whether they
    pass.
    """

    variant: str
    ratio: float
    python: str
    undecided: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What the main job made and found. `tunings` is empty where the plans were found before.

    `cascade` is None where the data are no case for one: few candidates a query, too few queries,
    or minutes.
    """

    folder: str
    tunings: tuple[Tuning, ...]
    validation: Validation
    bench: Bench
    recommendation: Recommendation
    cascade: Tried | None


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
    """Run every step on `model`, in the model folder `out`; a step that was done there before is
    not done again.

    A part of the candidates' queries calibrates and tunes, the rest is timed and judged by; see
    `Candidates.split`. Plans are found for the `contenders`, which run in every round of the
    bench; the other cases run in one. Variants are judged fastest first, for at most `minutes`,
    until one has passed. `bounds` are those of `gates_with`: what the data cannot decide is said
    before the export, what the model cannot as soon as that is done.
    """
    check_device(device)
    check_writable(out)  # before the work, not after it
    gates_with(bounds, bool(candidates.qrels), labels=None)
    folder = _exported(model, out, trust_remote_code, rank_label)
    gates = gates_with(
        bounds, bool(candidates.qrels), 1 if folder.manifest.ranks else folder.manifest.labels
    )
    part, judging = preparing(candidates), candidates.split()[1]
    folder = _halved(folder) if device == "cuda" else _quantized(folder, part)
    variants = variants_on(folder, device)
    plans = folder.manifest.plans.get(machine_name(device), {})
    kept = {
        v for v, plan in plans.items() if device == "cuda" or plan.callers * plan.threads == cores()
    }
    hopeful = contenders(folder, variants, part, device) if set(variants) - kept else variants
    untuned = [variant for variant in hopeful if variant not in kept]
    folder, tunings = tune(folder, untuned, part, device=device)
    raced = [BASELINE, *(Case(variant, "planned") for variant in hopeful)]
    cases = _cases(folder, variants)
    once = [case for case in cases if case not in raced]
    measured = bench(
        folder, judging.head(bench_pairs), cases, repeat=repeat, device=device, once=once
    )
    speeds = {
        m.case.variant: m.pairs_per_s for m in measured.measured if m.case.strategy == "planned"
    }
    by_speed = sorted(variants, key=lambda variant: -speeds[variant])
    validation = validate(
        folder, by_speed, judging, gates, device=device, minutes=minutes, first=True
    )
    apart = len(candidates.groups()) - len(judging.groups())
    validation = replace(validation, prepared_with=validation.prepared_with + apart)
    recommendation = recommend(folder, validation, measured)
    calibrated = {
        hash_ for v in variants for hash_ in folder.variant(v).recipe.get("calibrated_with", ())
    }
    # they chose the variant
    seen = judging.shuffled().without(calibrated).between(0, validation.queries)
    hashes = {query_hash(row.query) for row in seen.rows}  # and certify nothing
    _keep(folder, validation, measured, recommendation, hashes)
    tried = try_cascade(
        folder, candidates.without(hashes), recommendation.variant, speeds, minutes, device
    )
    return Outcome(str(folder.path), tuple(tunings), validation, measured, recommendation, tried)


def _cases(folder: ModelFolder, variants: Sequence[str]) -> list[Case]:
    """What the bench runs: each variant planned, and those that sentence-transformers runs as it
    does; few are slow.
    """
    # the other slow ones are left to `xopt bench`
    cases = [BASELINE, Case(BASELINE.variant, "concurrent")]
    for variant in map(folder.variant, variants):
        if variant.precision == "fp32" and BACKENDS[variant.backend].in_sentence_transformers(
            folder
        ):
            cases.append(Case(variant.name, "default"))
        cases.append(Case(variant.name, "planned"))
    return cases


def _keep(
    folder: ModelFolder,
    validation: Validation,
    measured: Bench,
    recommendation: Recommendation,
    chosen_by: set[str],
) -> None:
    """Write into the manifest what was found: scorers read there what is recommended, `xopt card`
    the figures.
    """
    ratios = {m.case.variant: m.ratio for m in measured.measured if m.case.strategy == "planned"}
    found = {
        "recommended": recommendation.variant,
        "chosen_by": sorted(chosen_by),
        "data": validation.data,
        "queries": validation.queries,
        "pairs": validation.pairs,
        "bench_pairs": measured.pairs,
        "threads": measured.threads,
        "versions": versions_here(),
        "variants": {
            judged.name: {
                "verdict": judged.verdict,
                "ratio": ratios.get(judged.name),
                "measures": {
                    name: {"mean": each.mean, "low": each.low, "high": each.high}
                    for name, each in judged.measures.items()
                    if np.isfinite([each.mean, each.low, each.high]).all()
                },
            }
            for judged in validation.judged
        },
    }
    machine = machine_name(measured.device)
    folder.write(lambda manifest: replace(manifest, measured={**manifest.measured, machine: found}))


def recommend(folder: ModelFolder, validation: Validation, measured: Bench) -> Recommendation:
    """The fastest variant under the plan among those that passed their gates; the reference
    always does.
    """
    verdicts = {judged.name: judged.verdict for judged in validation.judged}
    planned = sorted(
        (m for m in measured.measured if m.case.strategy == "planned"), key=lambda m: -m.pairs_per_s
    )
    best = next((m for m in planned if verdicts[m.case.variant] == PASSED), None)
    if best is None:
        raise GateFailed(
            f"{folder.path}: not even {BASELINE.variant} passes these gates against itself"
        )
    faster = planned[: planned.index(best)]
    where = "" if measured.device == "cpu" else f', device="{measured.device}"'
    python = f'scores = open_scorer("{folder.path}", "{best.case.variant}"{where}).score(pairs)'
    if folder.manifest.labels > 1:
        first, *second = [f"[:, {label}]" for label in folder.manifest.rank_label or ("LABEL",)]
        python += first if not second else f"; scores = scores{first} - scores{second[0]}"
    undecided = {m.case.variant: m.ratio for m in faster if verdicts[m.case.variant] == UNDECIDED}
    return Recommendation(best.case.variant, best.ratio, python, undecided)


def _quantized(folder: ModelFolder, candidates: Candidates) -> ModelFolder:
    try:
        target = detect_target()
    except BadInput as error:
        log.warning("quantize: without INT8 (%s)", error)
        return folder
    schemes = ["per-token"]
    if not saturates():  # elsewhere its INT8 is slower than FP32
        schemes.append("static")
    for scheme in schemes:
        there = folder.manifest.variants.get(SCHEMES[scheme])
        if there is None or overflows(there):
            log.info("quantize: %s, %s", scheme, target)
            folder = quantize(folder, recipe_for(target, scheme), candidates)
    return folder


def _halved(folder: ModelFolder) -> ModelFolder:
    # without one nothing would run it
    made = FP16 in folder.manifest.variants or not BACKENDS["onnx"].gpu_ready()
    return folder if made else halve(folder)


def _exported(model: str, out: Path, trusted: bool, rank_label: str | None) -> ModelFolder:
    if not (out / MANIFEST).is_file():
        if out.exists():
            raise BadInput(
                f"{out}: is there, and no model folder; choose another folder with -o, or move it away"
            )
        log.info("export: %s to %s", model, out)
        return export(model, out, trust_remote_code=trusted, rank_label=rank_label)
    folder = ModelFolder.open(out, trusted)
    kept = folder.manifest.source
    if not same_model(model, kept):
        raise BadInput(
            f"{out}: holds {kept['model']!r}, not {model!r}; choose another folder with -o"
        )
    if changed_since(model, kept):
        raise BadInput(
            f"{model}: changed since {out} was made of it; `xopt export {model} -o {out} --force` makes it again"
        )
    log.info(
        "export: %s is there already; `xopt export %s -o %s --force` makes it again",
        out,
        model,
        out,
    )
    if rank_label is None:
        return folder
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    label = rank_label_of(label_names(config, folder.manifest.labels), rank_label, out, str(out))
    if label == folder.manifest.rank_label:
        return folder
    # by another
    return folder.write(
        lambda manifest: replace(manifest, rank_label=label, measured={}, cascade={})
    )
