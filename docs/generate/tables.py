"""Writes the tables of measured figures into the pages, from the runs in docs/results/.

python docs/generate/tables.py [--check]

A page says where a table goes with a line `<!-- table: NAME -->` and a line `<!-- end -->`; what
stands between them is made here, by the function of that name in `TABLES`. docs/speed.svg is made
too. `--check` writes nothing, names the pages that differ, and ends with exit code 1.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import picture
from results import ROOT, Run, newest, runs

MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
ST = "sentence-transformers"
# What a case of the bench is called in tables.
CASES = {
    "torch-fp32/default": f"{ST} as it comes (torch, FP32, batches of 32)",
    "torch-fp32/concurrent": f"{ST}, four workers (`max_concurrency=4`)",
    "torch-fp32/batch-1": f"{ST}, torch FP32, batches of 1",
    "torch-bf16/default": f"{ST}, torch BF16, batches of 32",
    "torch-bf16/batch-8": f"{ST}, torch BF16, batches of 8",
    "torch-bf16/batch-1": f"{ST}, torch BF16, batches of 1",
    "st-onnx/default": f"{ST}, ONNX FP32, batches of 32",
    "st-onnx/batch-8": f"{ST}, ONNX FP32, batches of 8",
    "st-onnx/batch-1": f"{ST}, ONNX FP32, batches of 1",
    "st-onnx-qint8/default": f"{ST}, ONNX INT8, batches of 32",
    "st-onnx-qint8/batch-8": f"{ST}, ONNX INT8, batches of 8",
    "st-onnx-qint8/batch-1": f"{ST}, ONNX INT8, batches of 1",
    "st-openvino-qint8/default": f"{ST}, OpenVINO INT8, batches of 32",
    "st-openvino-qint8/batch-8": f"{ST}, OpenVINO INT8, batches of 8",
    "st-openvino-qint8/batch-1": f"{ST}, OpenVINO INT8, batches of 1",
    "ct2-int8/planned": "CTranslate2 INT8, fed by xopt's plan",
    "onnx-fp32/default": f"{ST}, ONNX FP32 (xopt's graph), batches of 32",
    "onnx-int8-stock/planned": "onnxruntime's own dynamic INT8, xopt's plan",
    "torch-fp32/planned": "xopt, torch FP32",
    "torch-bf16/planned": "xopt, torch BF16",
    "onnx-fp32/planned": "xopt, ONNX FP32 (exact)",
    "openvino-fp32/planned": "xopt, OpenVINO FP32 (exact)",
    "openvino-bf16/planned": "xopt, OpenVINO BF16",
    "onnx-int8/planned": "xopt, ONNX INT8",
    "openvino-int8/planned": "xopt, OpenVINO INT8",
}


def name_of(case: dict[str, str]) -> str:
    """Return `variant/strategy` of a case of the bench."""
    return f"{case['variant']}/{case['strategy']}"


def table(heads: list[str], rows: Iterable[list[str]]) -> str:
    """Return a Markdown table, whose first column is text and whose others are figures."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    lines += ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join(lines)


def source(run: Run, said: str = "") -> str:
    """Return the line below a table: what was measured, on what, when, and by which command."""
    sets = ", ".join(run.instruction_sets)
    text = (
        f"{said} {run.machine}: {sets}. {run.date}, commit {run.commit}, by `{run.command}`: "
        f"`docs/results/{run.file}`."
    )
    return "\n".join(
        textwrap.wrap(text.strip(), 100, break_long_words=False, break_on_hyphens=False)
    )


def benched(bench: dict[str, Any]) -> str:
    """Return what a bench ran on, in a sentence."""
    tokens = round(bench["tokens"] / bench["pairs"])
    counts = [len(each["rounds"]) for each in bench["measured"]]
    text = (
        f"{bench['pairs']} pairs of `{bench['data']}`, {tokens} tokens each in the mean, "
        f"{bench['threads']} threads, {max(counts)} interleaved rounds."
    )
    if min(counts) < max(counts):
        text += " Cases that could not win ran in the first round alone."
    return text


def bold(cells: list[str]) -> list[str]:
    """Return the cells of a row that stands out."""
    return [f"**{cells[0]}**", f"**{cells[1]}**", *cells[2:]]


def interval(value: dict[str, float]) -> str:
    """Return a mean with its interval, where it has any width, as commands print it."""
    mean, low, high = (f"{round(value[name], 3) + 0.0:.3f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if value["low"] < value["high"] else mean


def measured_cells(each: dict[str, Any]) -> dict[str, str]:
    """Return a case's figures by the heads of their columns."""
    return {
        "": CASES[name_of(each["case"])],
        "speed": f"{each['ratio']:.2f} x",
        "pairs/s": f"{each['pairs_per_s']:.1f}",
        "peak MiB": f"{each['peak_bytes'] / 2**20:,.0f}",
        "cores busy": f"{each['mean_cores']:.2f}",
        "tau-b": f"{each['agreement']['tau']:.3f}",
        "top-10": f"{each['agreement']['top10']:.3f}",
    }


def by_speed(bench: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cases of a bench, the slowest first."""
    return sorted(bench["measured"], key=lambda each: each["ratio"])


def in_daft(kept: list[Run]) -> str:
    """Speed, memory, cores and agreement of each case inside a Daft UDF."""
    run = newest("in-daft", kept)
    bench = run.result["bench"]
    cases = [measured_cells(each) for each in by_speed(bench)]
    heads = list(cases[0])
    rows = [list(cells.values()) for cells in cases]
    rows[-1] = bold(rows[-1])
    return f"{table(heads, rows)}\n\n{source(run, benched(bench))}"


def in_daft_short(kept: list[Run]) -> str:
    """Speed inside a Daft UDF, and the best ten documents with their interval."""
    run = newest("in-daft", kept)
    bench = run.result["bench"]
    validation = run.result["validation"]
    judged = {each["name"]: each["measures"]["top10"] for each in validation["judged"]}
    rows = []
    for each in by_speed(bench):
        case = each["case"]
        if case["variant"].startswith("torch") and case["strategy"] == "planned":
            continue
        agreement = interval(judged[case["variant"]])
        rows.append([CASES[name_of(case)], f"{each['ratio']:.1f} x", agreement])
    rows[-1] = bold(rows[-1])
    said = (
        f"{benched(bench)} Agreement is of {validation['pairs']} pairs of "
        f"{validation['queries']} queries, with intervals."
    )
    heads = ["inside a Daft batch UDF", "speed", "top-10 as FP32 ranks it"]
    return f"{table(heads, rows)}\n\n{source(run, said)}"


def recommendation(kept: list[Run]) -> str:
    """What `xopt optimize` prints last."""
    result = newest("in-daft", kept).result
    chosen = result["recommendation"]
    judged = result["validation"]["judged"]
    found = next(each for each in judged if each["name"] == chosen["variant"])
    measures = {name: interval(value) for name, value in found["measures"].items()}
    lines = [
        f"Recommended: {chosen['variant']}, {chosen['ratio']:.1f} times as fast as {ST} as it comes",
        f"On {found['queries']} queries: tau-b {measures['tau']}, top-10 {measures['top10']}, "
        f"DCG loss {measures['dcg10_loss']}",
    ]
    return "```text\n" + "\n".join(lines) + "\n```"


def agreement(kept: list[Run]) -> str:
    """How each variant ranks beside the reference, with intervals and verdicts."""
    run = newest("in-daft", kept)
    validation = run.result["validation"]
    rows = []
    for each in validation["judged"]:
        measures = each["measures"]
        cells = [interval(measures[name]) for name in ("tau", "top10", "dcg10_loss")]
        rows.append([f"`{each['name']}`", *cells, each["verdict"]])
    heads = ["", "tau-b", "top-10", "DCG loss", "verdict"]
    said = f"{validation['pairs']} pairs of {validation['queries']} queries that tuned nothing."
    return f"{table(heads, rows)}\n\n{source(run, said)}"


def io_bound(kept: list[Run]) -> str:
    """The cores that worked, and those that a monitor of the parent process saw."""
    run = newest("in-daft", kept)
    bench = run.result["bench"]
    rows = []
    for each in bench["measured"]:
        case = each["case"]
        if case["variant"] != "torch-fp32" or case["strategy"] == "planned":
            continue
        tree = each["mean_cores"]
        parent = each["root_mean_cores"]
        rows.append([CASES[name_of(case)], f"{tree:.2f}", f"{parent:.2f}"])
    heads = [f"cores busy, of {bench['cores']}", "process tree", "parent process alone"]
    return f"{table(heads, rows)}\n\n{source(run, benched(bench))}"


def peers(kept: list[Run]) -> str:
    """Each scorer at its batch size, by speed."""
    run = newest("peers", kept)
    bench = run.result
    heads = ["", "speed", "pairs/s", "peak MiB", "tau-b", "top-10"]
    rows = []
    for each in by_speed(bench):
        figures = measured_cells(each)
        cells = [figures[head] for head in heads]
        rows.append(bold(cells) if cells[0].startswith("xopt") else cells)
    return f"{table(heads, rows)}\n\n{source(run, benched(bench))}"


def forward(kept: list[Run]) -> str:
    """The shares of a planned forward's time by kind of operation."""
    run = newest("peers", kept)
    bench = run.result
    heads = ["of a forward's time", "of the ceiling"]
    rows = []
    profiled = [each for each in by_speed(bench) if each["explained"]["kinds"]]
    kinds = list(dict.fromkeys(kind for each in profiled for kind in each["explained"]["kinds"]))
    for each in profiled:
        explained = each["explained"]
        shares = [f"{explained['kinds'].get(kind, 0):.0%}" for kind in kinds]
        name = CASES[name_of(each["case"])]
        rows.append([name, f"{explained['of_ceiling']:.0%}", *shares])
    ceilings = bench["ceilings"]
    said = (
        f"{benched(bench)} Ceilings of {ceilings['threads']} threads: "
        f"FP32 {ceilings['fp32_gflops']:,.0f} GFLOP/s, BF16 {ceilings['bf16_gflops']:,.0f} GFLOP/s, "
        f"INT8 {ceilings['int8_gflops']:,.0f} GOP/s, memory {ceilings['memory_gbs']:.0f} GB/s."
    )
    return f"{table([*heads, *kinds], rows)}\n\n{source(run, said)}"


def one_query(kept: list[Run]) -> str:
    """The median and the 95th percentile of a query, by its number of candidates."""
    run = newest("one-query", kept)
    by_case: dict[str, dict[int, dict[str, Any]]] = {}
    for row in run.result["rows"]:
        by_case.setdefault(row["case"], {})[row["candidates"]] = row
    sizes = list(next(iter(by_case.values())))
    rows = []
    for case, found in sorted(by_case.items(), key=lambda item: -item[1][sizes[-1]]["p50_ms"]):
        times = [f"{found[n]['p50_ms']:,.1f} / {found[n]['p95_ms']:,.1f}" for n in sizes]
        name = CASES[case]
        rows.append([f"**{name}**" if name.startswith("xopt") else name, *times])
    heads = ["p50 / p95 in ms", *(f"{n} candidate{'s' * (n > 1)}" for n in sizes)]
    said = f"{run.result['threads']} threads, {run.result['rounds']} interleaved rounds."
    return f"{table(heads, rows)}\n\n{source(run, said)}"


def by_processor(kept: list[Run]) -> str:
    """The speed of the main variants inside Daft, a row for each machine."""
    columns = ["onnx-fp32", "openvino-fp32", "openvino-bf16", "onnx-int8", "openvino-int8"]
    newest_of = {}
    for run in reversed([each for each in kept if each.run == "in-daft"]):
        newest_of[run.machine] = run
    rows = []
    for run in newest_of.values():
        cases = {name_of(each["case"]): each for each in run.result["bench"]["measured"]}
        cells = []
        for variant in columns:
            case = cases.get(f"{variant}/planned")
            cells.append(f"{case['ratio']:.1f} x" if case else "")
        baseline = f"{cases['torch-fp32/default']['pairs_per_s']:.0f} pairs/s"
        cores = run.result["bench"]["cores"]
        sets = ", ".join(run.instruction_sets)
        rows.append([f"{run.machine}, {cores} cores: {sets}", baseline, *cells])
    heads = ["", f"{ST} as it comes", *(f"`{name}`" for name in columns)]
    return table(heads, rows)


def long_pairs(kept: list[Run]) -> str:
    """The peak of resident memory, and what is held when short pairs followed."""
    run = newest("long-pairs", kept)
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in run.result["rows"]:
        found.setdefault((row["architecture"], row["variant"]), {})[row["pairs"]] = row
    counts = list(next(iter(found.values())))
    rows = []
    for (architecture, variant), by_count in found.items():
        opened = f"{by_count[counts[0]]['opened_mib']:,}"
        cells = [f"{by_count[n]['peak_mib']:,} / {by_count[n]['after_mib']:,}" for n in counts]
        rows.append([f"{architecture}, {variant}", opened, *cells])
    heads = ["MiB, peak / after", "opened", *(f"{n} pair{'s' * (n > 1)}" for n in counts)]
    return f"{table(heads, rows)}\n\n{source(run)}"


def files(kept: list[Run]) -> str:
    """What a job takes beside its scorer, and its memory."""
    rate = newest("files", kept)
    many = newest("many-pairs", kept)
    peaks = ", ".join(f"{peak:,.0f}" for peak in many.result["peaks_mib"])
    pairs = many.result["rows"]
    rows = [
        [
            f"the job's rate beside its scorer's alone, `{rate.result['variant']}`, "
            f"{rate.result['pairs']:,} pairs",
            f"{rate.result['ratio']:.2f}",
        ],
        [
            f"{pairs:,} short pairs with a tiny model",
            f"{many.result['seconds']:.0f} s, {pairs / many.result['seconds']:,.0f} pairs/s",
        ],
        ["peak memory in each quarter of that time", f"{peaks} MiB"],
        ["the same command again", f"{many.result['again_s']:.1f} s"],
    ]
    return f"{table(['', ''], rows)}\n\n{source(rate)}\n{source(many)}"


def median_of(kept: list[Run], run: str, *keys: str) -> float:
    """Return the median of values in the newest run of a name."""
    found = newest(run, kept).result
    for key in keys:
        found = found[key]
    return statistics.median(found)


def serving(kept: list[Run]) -> str:
    """What HTTP costs beside the scorer, and what a server keeps to under load."""
    rows = []
    bare = median_of(kept, "serve-rate", "pairs_per_s", "scorer")
    for clients in ("16 clients", "64 clients"):
        rate = median_of(kept, "serve-rate", "pairs_per_s", clients)
        what = f"pairs/s of {clients} with 20 documents each, of the scorer's alone"
        rows.append([what, f"{rate / bare:.2f}"])
    for count, documents in (("1", "one document"), ("10", "10 documents")):
        served_ms = 1000 * median_of(kept, "serve-latency", count, "server")
        scorer_ms = 1000 * median_of(kept, "serve-latency", count, "scorer")
        what = f"median time of a request of {documents}, and of the scorer's call"
        rows.append([what, f"{served_ms:.1f} ms, {scorer_ms:.1f} ms"])
    fair = newest("serve-fair", kept).result
    alone_s, beside_s = (nearest_rank(fair[name], 0.99) for name in ("alone_s", "beside_s"))
    rows += [
        ["p99 of 10 documents, nothing else asked", f"{1000 * alone_s:,.0f} ms"],
        ["p99 of 10 documents, beside requests of 1,000", f"{1000 * beside_s:,.0f} ms"],
        ["a forward beside them", f"{1000 * fair['forward_s']:,.0f} ms"],
    ]
    same = newest("serve-same", kept).result
    what = "replies among 64 clients that are those alone, byte by byte"
    rows.append([what, f"{same['equal']} of {same['of']}"])
    soak = newest("serve-soak", kept).result
    rows += [
        ["answers in an hour of all sizes, malformed ones included", f"{answers_of(soak):,}"],
        ["memory after its first ten minutes", f"{soak['early_mib']:,.0f} MiB"],
        ["memory at its end", f"{soak['late_mib']:,.0f} MiB"],
    ]
    runs_of_it = ("serve-rate", "serve-latency", "serve-fair", "serve-same", "serve-soak")
    sources = [source(newest(run, kept)) for run in runs_of_it]
    return table(["", ""], rows) + "\n\n" + "\n".join(sources)


def servers(kept: list[Run]) -> str:
    """Other servers of the same model, the fastest first."""
    run = newest("servers", kept)
    found = sorted(run.result["rows"], key=lambda each: -each["pairs_per_s"])
    rows = [
        [
            each["server"],
            f"{each['pairs_per_s']:.1f}",
            f"{each['p95_s']:.1f} s",
            f"{each['tau']:.3f}",
            f"{each['rss_mib']:,.0f}",
        ]
        for each in found
    ]
    heads = ["server", "pairs/s", "p95", "tau-b", "MiB"]
    return table(heads, rows) + "\n\n" + source(run)


def answers_of(soak: dict[str, Any]) -> int:
    return sum(soak["statuses"].values())


def nearest_rank(values: list[float], share: float) -> float:
    """Return the value that a share of all reaches at most."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


TABLES: dict[str, Callable[[list[Run]], str]] = {
    "agreement": agreement,
    "by-processor": by_processor,
    "files": files,
    "forward": forward,
    "in-daft": in_daft,
    "in-daft-short": in_daft_short,
    "io-bound": io_bound,
    "long-pairs": long_pairs,
    "one-query": one_query,
    "peers": peers,
    "recommendation": recommendation,
    "servers": servers,
    "serving": serving,
}


def rewritten(text: str, kept: list[Run]) -> str:
    """Return a page with its tables made anew."""

    def made(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        return f"{begin}\n{TABLES[name](kept)}\n\n{end}"

    return MARKED.sub(made, text)


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def differing(root: Path, kept: list[Run]) -> dict[Path, str]:
    """Return what each page that is not up to date has to hold."""
    new = {page: rewritten(page.read_text(encoding="utf-8"), kept) for page in pages(root)}
    new[root / "docs" / "speed.svg"] = picture.drawn(newest("in-daft", kept), CASES)
    return {
        page: text
        for page, text in new.items()
        if not page.is_file() or page.read_text(encoding="utf-8") != text
    }


def main() -> None:
    """Write the pages, or say which ones differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="where README.md and docs/ are")
    given = parser.parse_args()
    changed = differing(given.root, runs(given.root / "docs" / "results"))
    for page, text in changed.items():
        print(
            f"{page.relative_to(given.root)}: {'differs from' if given.check else 'written by'} docs/results/"
        )
        if not given.check:
            page.write_text(text, encoding="utf-8")
    if given.check and changed:
        sys.exit("write them with `python docs/generate/tables.py`")


if __name__ == "__main__":
    main()
