"""Pages of the results of commands, in HTML or Markdown."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from xopt.optimize.report.measured import (
    MEASURES,
    case_name,
    charted,
    gate_panels,
    shown_cases,
)
from xopt.runtime.bench.explain import STAGES
from xopt.runtime.errors import BadInput

__all__ = ["Change", "compare", "gather", "load_template", "read_results", "render"]

Json = dict[str, Any]

# Of `xopt bench`, `xopt validate` and `xopt optimize`.
RESULT_KEYS = {"measured", "judged", "recommendation", "served"}
VERDICTS = ("fail", "undecided", "pass")  # the worst first
LEAST_NOISE = 0.10  # what idle machines differ by from one run to the next


@dataclass(frozen=True)
class Change:
    """A case's speed in two results, in times the baseline, and the scatter of rounds."""

    case: str
    before: float
    after: float
    noise: float

    @property
    def within_noise(self) -> bool:
        """Whether the change is no larger than the scatter."""
        return abs(self.after / self.before - 1) <= self.noise


def read_results(files: Sequence[Path]) -> Json:
    """Read the JSON files that commands wrote and `gather` their results.

    Raises BadInput where a file cannot be read or holds no result.
    """
    results = []
    for file in files:
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(
                f"{file}: cannot be read as JSON ({error}); give what "
                "`xopt bench DIR --json FILE` wrote"
            ) from error
        if not isinstance(result, dict) or result.keys().isdisjoint(RESULT_KEYS):
            raise BadInput(
                f"{file}: no result of `xopt bench`, `xopt validate` or `xopt optimize` in it"
            )
        results.append(result)
    return gather(results)


def gather(results: Sequence[Json]) -> Json:
    """Gather the JSON of `xopt bench`, `validate` and `optimize` by kind.

    Returns lists of `benches`, `validations` and `served`, the results of servers under load.
    Also the `recommendation` and `cascade` of `xopt optimize`, or None.
    """
    found: Json = {
        "benches": [],
        "validations": [],
        "served": [],
        "recommendation": None,
        "cascade": None,
    }
    for result in results:
        if "measured" in result:
            found["benches"].append(result)
        if "judged" in result:
            found["validations"].append(result)
        if "served" in result:
            found["served"].append(result)
        if "bench" in result:
            found["benches"].append(result["bench"])
        if "validation" in result:
            found["validations"].append(result["validation"])
        for name in ("recommendation", "cascade"):
            if result.get(name):
                found[name] = result[name]
    return found


def compare(before: Json, after: Json) -> list[Change]:
    """Compare the speeds of the cases that both results have."""
    old = _cases_by_name(before)
    changes = []
    for name, case in _cases_by_name(after).items():
        if name in old:
            noise = max(LEAST_NOISE, _scatter(old[name]) + _scatter(case))
            changes.append(Change(name, old[name]["ratio"], case["ratio"], noise))
    return changes


def _cases_by_name(results: Json) -> dict[str, Json]:
    return {case_name(case): case for bench in results["benches"] for case in bench["measured"]}


def _judged(results: Json) -> list[Json]:
    return [judged for each in results["validations"] for judged in each["judged"]]


def _scatter(measured: Json) -> float:
    """Half the range of a case's times over their median."""
    seconds = sorted(each["wall_s"] for each in measured["rounds"])
    return float((seconds[-1] - seconds[0]) / 2 / seconds[len(seconds) // 2])


def load_template(name: str) -> jinja2.Template:
    """Load a template, with the filters that they share. HTML escapes all values.

    A line that ends in an empty comment, `{# -#}`, goes on in the next one.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xopt.optimize.report", "templates"),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["interval"] = _interval
    environment.filters["cell"] = _cell
    environment.filters["code"] = _code
    return environment.get_template(name)


def render(results: Json, baseline: Json | None, markdown: bool) -> str:
    """Render gathered results, compared with a baseline where there is one."""
    cases = [shown_cases(bench) for bench in results["benches"]]
    headline = _headline(results, list(itertools.chain.from_iterable(cases)))
    judged = {}
    for name, verdict in _verdicts(results).items():
        found = [each for each in _judged(results) if each["name"] == name]
        judged[name] = {**found[0], "verdict": verdict}
    best = headline["best"]
    benches = [
        charted(bench, shown, judged, best["name"] if best else None)
        for bench, shown in zip(results["benches"], cases, strict=True)
    ]
    return load_template("report.md" if markdown else "report.html").render(
        headline=headline,
        benches=benches,
        validations=[{**v, "panels": gate_panels(v)} for v in results["validations"]],
        certified=results["cascade"] and results["cascade"]["certified"],
        cascades=_cascades(results),
        served=results["served"],
        stages=STAGES,
        words=MEASURES,
        changes=compare(baseline, results) if baseline else None,
        verdicts=_verdict_changes(baseline, results) if baseline else [],
        moved=baseline is not None and _machines(baseline) != _machines(results),
    )


def _cascades(results: Json) -> list[Json]:
    """What cascades scored and lost where they were timed.

    `faster` is the speed in times that of scoring everything, None where unknown.
    """
    benches = list(results["benches"])
    if results["cascade"] and results["cascade"]["bench"]:
        benches.append(results["cascade"]["bench"])
    found = []
    for bench in benches:
        ratios = {case_name(case): case["ratio"] for case in bench["measured"]}
        for case in bench["measured"]:
            if case["cascaded"]:
                planned = ratios.get(f"{case['case']['variant']}/planned")
                faster = case["ratio"] / planned if planned else None
                shown = {
                    "name": case_name(case),
                    "ratio": case["ratio"],
                    "planned": planned,
                    "faster": faster,
                }
                found.append({**shown, **case["cascaded"]})
    return found


def _headline(results: Json, cases: Sequence[Json]) -> Json:
    """What the page opens with.

    `best` is the recommended case, or the fastest that passed. `faster` is undecided
    and faster still. `fastest` is for results without a verdict.
    """
    verdicts = _verdicts(results)
    variants: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for variant, verdict in verdicts.items():
        variants[verdict].append(variant)
    # A cascade has a certificate and no verdict.
    cases = [case for case in cases if not case["cascaded"]]
    passed = [case for case in cases if case["case"]["variant"] in variants["pass"]]
    undecided = [case for case in cases if case["case"]["variant"] in variants["undecided"]]
    advice = results["recommendation"] or {"variant": None, "python": None}
    name = f"{advice['variant']}/planned"
    recommended = [case for case in passed if case["name"] == name]
    best = _fastest(recommended or passed)
    faster = _fastest(undecided)
    if best and faster and faster["ratio"] <= best["ratio"]:
        faster = None
    judged = [each for each in _judged(results) if best and each["name"] == best["case"]["variant"]]
    return {
        "best": best,
        "judged": judged[0] if judged else None,
        "faster": faster,
        "fastest": None if verdicts else _fastest(cases),
        "python": advice["python"],
        **variants,
    }


def _fastest(cases: Sequence[Json]) -> Json | None:
    return max(cases, key=lambda case: float(case["ratio"]), default=None)


def _verdicts(results: Json) -> dict[str, str]:
    """The worst verdict on each variant."""
    verdicts: dict[str, str] = {}
    for judged in _judged(results):
        other = verdicts.get(judged["name"], judged["verdict"])
        verdicts[judged["name"]] = min(judged["verdict"], other, key=VERDICTS.index)
    return verdicts


def _verdict_changes(before: Json, after: Json) -> list[tuple[str, str, str]]:
    """Variants whose verdict changed, with both verdicts."""
    old = _verdicts(before)
    new = _verdicts(after)
    changed = [name for name in new if name in old and old[name] != new[name]]
    return [(name, old[name], new[name]) for name in changed]


def _machines(results: Json) -> set[tuple[str, int]]:
    return {(bench["machine"], bench["threads"]) for bench in results["benches"]}


def _interval(found: Json | None) -> str:
    """A mean, and its interval where it has a width."""
    if not found or found["mean"] is None:
        return ""
    mean = _thousandths(found["mean"])
    if found["low"] < found["high"]:
        return f"{mean} [{_thousandths(found['low'])}, {_thousandths(found['high'])}]"
    return mean


def _thousandths(value: float) -> str:
    """Three decimals, and no minus before a zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def _cell(text: Any) -> str:
    """Text for a cell of a Markdown table, where nothing is markup."""
    plain = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def _code(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))
