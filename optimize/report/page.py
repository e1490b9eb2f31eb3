"""Report: results of `xopt bench`, `validate` and `optimize` as one page, in HTML or Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from xopt.optimize.report.charts import frontier, scatter, sparkline
from xopt.runtime.bench.explain import STAGES
from xopt.runtime.errors import BadInput

__all__ = ["Change", "compare", "gather", "read_results", "render", "template_named"]

Json = dict[str, Any]

# verdicts, as results have them
FAILED, UNDECIDED, PASSED = WORST_FIRST = ("fail", "undecided", "pass")
NOISE = 0.10  # what machines that do nothing else differ by from one run to the next


@dataclass(frozen=True)
class Change:
    """A case in two results: its speed as a ratio to the baseline, then and now, and how far
    rounds scatter.
    """

    case: str
    before: float
    after: float
    noise: float

    @property
    def within_noise(self) -> bool:
        """Whether the difference is no larger than what the rounds differ by."""
        return abs(self.after / self.before - 1) <= self.noise


def read_results(files: Sequence[Path]) -> Json:
    """The results in files as `gather` gives them. Raises BadInput where a file holds none."""
    values = []
    for file in files:
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(
                f"{file}: cannot be read as JSON ({error}); give what a command wrote with --json"
            ) from error
        if not isinstance(value, dict) or not set(value) & {"measured", "judged", "bench"}:
            raise BadInput(
                f"{file}: no result of `xopt bench`, `xopt validate` or `xopt optimize` in it"
            )
        try:
            gather([value])
        except (KeyError, IndexError, TypeError) as error:
            raise BadInput(
                f"{file}: a result of another version of xopt ({error!r}); run the command again"
            ) from error
        values.append(value)
    return gather(values)


def gather(values: Sequence[Json]) -> Json:
    """Results of `xopt bench`, `validate` and `optimize`, as their JSON is, by kind.

    `benches`, `validations`, and of `xopt optimize`, None where there is none, `recommendation`
    and `cascade`.
    """
    found: Json = {"benches": [], "validations": [], "recommendation": None, "cascade": None}
    for value in values:
        found["benches"] += (
            [value] if "measured" in value else [value["bench"]] if "bench" in value else []
        )
        found["validations"] += (
            [value] if "judged" in value else [value["validation"]] if "validation" in value else []
        )
        for name in ("recommendation", "cascade"):
            found[name] = value.get(name) or found[name]
    for bench in found["benches"]:
        _check(bench["measured"][0], ("case", "ratio", "explained", "rounds", "cascaded"))
    if found["cascade"] and found["cascade"]["certified"]["cascade"]:
        _check(found["cascade"]["certified"], ("python", "folder", "cascade"))
    for validation in found["validations"]:
        _check(validation["judged"][0], ("name", "verdict", "measures", "gates", "losses"))
    return found


def _check(value: Json, names: Sequence[str]) -> None:
    for name in names:
        value[name]


def compare(before: Json, after: Json) -> list[Change]:
    """The cases that both results have. Noise is the scatter of both runs' rounds, and at least
    `NOISE`.
    """
    old, new = (
        {_name(m): m for bench in result["benches"] for m in bench["measured"]}
        for result in (before, after)
    )
    changes = []
    for case, m in new.items():
        if case in old:
            noise = max(NOISE, _scatter(old[case]) + _scatter(m))
            changes.append(Change(case, old[case]["ratio"], m["ratio"], noise))
    return changes


def _scatter(measured: Json) -> float:
    """How far a case's rounds lie apart, as half their range over their median."""
    walls = sorted(r["wall_s"] for r in measured["rounds"])
    return float((walls[-1] - walls[0]) / 2 / walls[len(walls) // 2])


def _name(measured: Json) -> str:
    return f"{measured['case']['variant']}/{measured['case']['strategy']}"


def template_named(name: str) -> jinja2.Template:
    """A template, with the filters that they share; what goes into a page of HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xopt.optimize.report", "templates"),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"interval": _interval, "share": _share, "cell": _cell, "bytes": _bytes}
    return environment.get_template(name)


def render(results: Json, baseline: Json | None, markdown: bool) -> str:
    """The page. What comes from data is escaped."""
    cases = [_case(bench, m) for bench in results["benches"] for m in bench["measured"]]
    points = [(c["name"], c["ratio"], c["top10"]) for c in cases if c["top10"] is not None]
    best = frontier(points)
    return template_named("report.md" if markdown else "report.html").render(
        headline=_headline(results, cases),
        benches=results["benches"],
        validations=results["validations"],
        cases=cases,
        certified=results["cascade"] and results["cascade"]["certified"],
        cascades=_cascades(results),
        fastest=max((c["ratio"] for c in cases), default=1.0),
        stages=STAGES,
        frontier=[points[i][0] for i in best],
        points=[name for name, *_ in points],
        scatter=scatter(points, best) if points else "",
        changes=compare(baseline, results) if baseline else None,
        verdicts=_verdict_changes(baseline, results) if baseline else [],
        moved=baseline is not None and _machines(baseline) != _machines(results),
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _case(bench: Json, measured: Json) -> Json:
    """A measured case as the page shows it."""
    explained, usage = measured["explained"], measured["rounds"][-1]["usage"]
    agreed = measured["agreement"]
    cores = [moment["cores"] / bench["cores"] for moment in usage["timeline"]]
    parents = [moment["root_cores"] / bench["cores"] for moment in usage["timeline"]]
    split = explained["split"] if explained else {}
    return {
        **measured,
        "name": _name(measured),
        "top10": agreed["top10"] if agreed else None,
        "cpu": measured["mean_cores"] / bench["cores"],
        "parent_cpu": measured["root_mean_cores"] / bench["cores"],
        "shares": {stage: seconds / sum(split.values()) for stage, seconds in split.items()},
        "held_back": explained["findings"][0] if explained else None,
        "also": explained["findings"][1:] if explained else [],
        "timeline": sparkline(cores, parents),
        "usage": usage,
    }


def _cascades(results: Json) -> list[Json]:
    """What cascades scored and lost where they were timed, and how much faster they were than
    scoring everything.
    """
    own, found = results["cascade"], []
    for bench in [*results["benches"], *([own["bench"]] if own and own["bench"] else [])]:
        planned = {
            m["case"]["variant"]: m["ratio"]
            for m in bench["measured"]
            if m["case"]["strategy"] == "planned"
        }
        for m in bench["measured"]:
            if m["cascaded"]:
                faster = (
                    m["ratio"] / planned[m["case"]["variant"]]
                    if m["case"]["variant"] in planned
                    else None
                )
                found.append(
                    {
                        "name": _name(m),
                        "ratio": m["ratio"],
                        "faster": faster,
                        "seen": "",
                        **m["cascaded"],
                    }
                )
    return found


def _headline(results: Json, cases: Sequence[Json]) -> Json:
    """What the page opens with.

    `best` is the recommended variant's case, or the fastest of a variant that passed everywhere;
    `fastest` the fastest case where nothing was judged.
    """
    verdicts = _verdicts(results)
    advice = results["recommendation"] or {}
    cases = [c for c in cases if not c["cascaded"]]  # no verdict is of those, but a certificate
    passed = [c for c in cases if verdicts.get(c["case"]["variant"]) == PASSED]
    chosen = [c for c in passed if c["name"] == f"{advice.get('variant')}/planned"] or passed
    best = max(chosen, key=lambda c: c["ratio"], default=None)
    undecided = [c for c in cases if verdicts.get(c["case"]["variant"]) == UNDECIDED]
    faster = [c for c in undecided if best is None or c["ratio"] > best["ratio"]]
    judged = [
        j
        for v in results["validations"]
        for j in v["judged"]
        if best and j["name"] == best["case"]["variant"]
    ]
    return {
        "best": best,
        "measures": judged[0]["measures"] if judged else {},
        "faster": max(faster, key=lambda c: c["ratio"], default=None),
        "fastest": None if verdicts else max(cases, key=lambda c: c["ratio"], default=None),
        "python": advice.get("python"),
        **{
            verdict: [name for name, held in verdicts.items() if held == verdict]
            for verdict in WORST_FIRST
        },
    }


def _verdicts(results: Json) -> dict[str, str]:
    """The worst verdict on each variant."""
    verdicts: dict[str, str] = {}
    for validation in results["validations"]:
        for judged in validation["judged"]:
            both = [judged["verdict"], verdicts.get(judged["name"], PASSED)]
            verdicts[judged["name"]] = min(both, key=WORST_FIRST.index)
    return verdicts


def _machines(results: Json) -> set[tuple[str, int]]:
    return {(bench["machine"], bench["threads"]) for bench in results["benches"]}


def _verdict_changes(before: Json, after: Json) -> list[tuple[str, str, str]]:
    """Variants whose verdict is another one now."""
    old, new = _verdicts(before), _verdicts(after)
    return [
        (name, old[name], verdict)
        for name, verdict in new.items()
        if name in old and old[name] != verdict
    ]


def _interval(found: Json | None) -> str:
    """A mean and its interval."""
    if not found or found["mean"] is None:
        return ""
    spread = f" [{found['low']:.3f}, {found['high']:.3f}]" if found["low"] < found["high"] else ""
    return f"{found['mean']:.3f}{spread}"


def _cell(text: Any) -> str:
    """Text within a cell of a Markdown table, with nothing in it that Markdown or HTML would
    read.
    """
    plain = " ".join(str(text).split())
    for mark in "\\`*_[]<>|#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def _bytes(count: float) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
