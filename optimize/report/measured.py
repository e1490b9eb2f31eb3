"""What a page shows of a bench and of verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xopt.optimize.report.charts import Point, frontier, scatter, sparkline, strips
from xopt.runtime.bench.bench import BASELINE
from xopt.runtime.bench.explain import outlook
from xopt.runtime.bench.strategy import STRATEGIES

__all__ = ["MEASURES", "case_name", "charted", "gate_panels", "shown_cases"]

Json = dict[str, Any]

MEASURES = {
    "tau": "tau-b",
    "spearman": "Spearman",
    "rbo": "rank-biased overlap",
    "top1": "top-1 overlap",
    "top3": "top-3 overlap",
    "top5": "top-5 overlap",
    "top10": "top-10 overlap",
    "dcg10_loss": "loss of DCG@10",
    "ndcg10": "nDCG@10",
    "ndcg10_drop": "loss of nDCG@10",
    "mrr10": "MRR@10",
    "recall10": "recall@10",
    "labels": "same label",
}
WIDTHS = (560, 368)  # of a chart on a screen and on a phone


def case_name(measured: Json) -> str:
    """The name of a measured case, `VARIANT/STRATEGY`."""
    return f"{measured['case']['variant']}/{measured['case']['strategy']}"


def shown_cases(bench: Json) -> list[Json]:
    """What the page shows of a bench's cases, the fastest first."""
    speeds = {case_name(measured): measured["ratio"] for measured in bench["measured"]}
    cases = [_case(bench, measured, speeds) for measured in bench["measured"]]
    return sorted(cases, key=lambda case: -float(case["ratio"]))


def _case(bench: Json, measured: Json, speeds: dict[str, float]) -> Json:
    """What the page shows of a measured case; CPU as a share of all cores."""
    usage = measured["rounds"][-1]["usage"]
    timeline = usage["timeline"]
    cores = bench["cores"]
    name = case_name(measured)
    explained = measured["explained"] or {"split": {}, "findings": []}
    findings = [(finding["name"], finding["gain"]) for finding in explained["findings"]]
    return {
        **measured,
        "name": name,
        "device": bench["device"],
        "is_baseline": name == str(BASELINE),
        "speeds": _ratios(bench, measured),
        "cpu": measured["mean_cores"] / cores,
        "parent_cpu": measured["root_mean_cores"] / cores,
        "split": explained["split"],
        "shares": _shares(measured["case"]["strategy"], explained["split"]),
        "kinds": explained.get("kinds") or {},
        "findings": explained["findings"],
        "outlook": outlook(name, findings, speeds) if findings else "",
        "timelines": {
            "tree": sparkline([moment["cores"] / cores for moment in timeline]),
            "parent": sparkline([moment["root_cores"] / cores for moment in timeline]),
        },
        "usage": usage,
    }


def _ratios(bench: Json, measured: Json) -> list[float]:
    """A case's speed in times the baseline's, round by round, the slowest first."""
    for base in bench["measured"]:
        if case_name(base) == str(BASELINE):
            # A case that runs once has the first round only.
            rounds = zip(base["rounds"], measured["rounds"], strict=False)
            return sorted(old["wall_s"] / new["wall_s"] for old, new in rounds)
    return []


def _shares(strategy: str, split: Json) -> Json:
    """The shares of a case's time, without the start-up where a job pays that once."""
    known = STRATEGIES.get(strategy)
    reopened = known is not None and known.workers is not None
    counted = {}
    for stage, seconds in split.items():
        counted[stage] = 0.0 if stage == "start_up_s" and not reopened else seconds
    total_s = sum(counted.values())
    return {stage: seconds / total_s for stage, seconds in counted.items()}


def charted(bench: Json, cases: list[Json], judged: dict[str, Json], best: str | None) -> Json:
    """A bench with its cases and charts. `judged` is by variant, `best` the recommended case."""
    for case in cases:
        found = judged.get(case["case"]["variant"])
        case["verdict"] = found["verdict"] if found and not case["cascaded"] else None
        case["is_best"] = case["name"] == best
    by_queries = _points(cases, judged, by_verdicts=True)
    points = by_queries or _points(cases, judged, by_verdicts=False)
    chosen = [case for case in cases if case["is_best"]] or cases
    kept = [point for point in points if point.name == _label(chosen[0])]
    return {
        **bench,
        "cases": cases,
        "chosen": chosen[0],
        "kept": kept[0] if kept else None,
        "by_verdicts": bool(by_queries),
        "charts": [scatter(points, width) for width in WIDTHS] if points else [],
        "frontier": [point.name for point in frontier(points)],
        "failed": [_label(case) for case in cases if case["verdict"] == "fail"],
    }


def _label(case: Json) -> str:
    """What a chart calls a case: its variant alone where it runs under xopt's plan."""
    name = str(case["case"]["variant"])
    return name if case["case"]["strategy"] == "planned" else case_name(case)


def _points(cases: Sequence[Json], judged: dict[str, Json], by_verdicts: bool) -> list[Point]:
    """Each variant's fastest case, and the baseline; none where the verdicts lack a variant."""
    points: dict[str, Point] = {}
    for case in cases:
        variant = case["case"]["variant"]
        if case["cascaded"] or (variant in points and not case["is_baseline"]):
            continue
        agreed = (case["agreement"] or {}).get("top10")
        low = high = None
        if by_verdicts:
            measures = judged[variant]["measures"] if variant in judged else {}
            found = measures.get("top10") or {"mean": None, "low": None, "high": None}
            agreed = found["mean"]
            low = found["low"]
            high = found["high"]
            if agreed is None:
                return []
        if agreed is not None:
            key = case["name"] if case["is_baseline"] and variant in points else variant
            points[key] = Point(_label(case), case["ratio"], agreed, low, high)
    return list(points.values())


def gate_panels(validation: Json) -> list[Json]:
    """For each gate of a validation, all variants' intervals on one axis."""
    panels: dict[str, Json] = {}
    for judged in validation["judged"]:
        for result in judged["gates"]:
            gate = result["gate"]
            panel = panels.setdefault(gate["measure"], {"gate": gate, "rows": []})
            panel["rows"].append({"name": judged["name"], **result, "strip": None})
    for panel in panels.values():
        drawn = [row for row in panel["rows"] if row["interval"]["mean"] is not None]
        found = [row["interval"] for row in drawn]
        intervals = [(each["low"], each["mean"], each["high"]) for each in found]
        laid, panel["start"], panel["end"] = strips(intervals, panel["gate"]["bound"])
        for row, strip in zip(drawn, laid, strict=True):
            row["strip"] = strip
    return list(panels.values())
