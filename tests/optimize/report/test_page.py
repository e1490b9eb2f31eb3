from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from xopt.cli.output import plain
from xopt.optimize.report.page import compare, gather, read_results, render
from xopt.optimize.validate import validate
from xopt.runtime.bench.bench import Bench
from xopt.runtime.data.candidates import Candidates, Row
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder

EVIL = '<script>alert("x")</script> **bold** | `code` <img src=https://example.org/x>'
PROBE = """<script>addEventListener("load", () => {
  const all = (css, within = document) => [...within.querySelectorAll(css)];
  const table = all("table.sortable").at(-1);
  const height = (node) => node.getBoundingClientRect().height;
  const names = all(".scatter g text").filter((text) => height(text) > 0);
  const boxes = names.map((name) => name.getBoundingClientRect());
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom
    && b.top < a.bottom;
  table.querySelectorAll("thead button")[3].click();
  parent.document.body.dataset.found = JSON.stringify({
    sorted: [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[3].textContent)),
    wide: document.documentElement.scrollWidth,
    seen: innerWidth,
    asked: performance.getEntriesByType("resource").length,
    headings: all("h2").length,
    pictures: all("svg").filter((svg) => height(svg) > 20).length,
    smallest: Math.min(...names.map(height)),
    names: names.length,
    overlaps: boxes.filter((a, i) => boxes.some((b, j) => i < j && meet(a, b))).length,
  });
});</script>"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def results(benched: Bench, tiny: ModelFolder, docs: Candidates) -> list[dict[str, Any]]:
    """What `xopt bench` and `xopt validate` write, on texts that hold HTML."""
    rows = tuple(
        Row(EVIL + row.query_id, row.query + EVIL, EVIL + row.doc_id, EVIL + row.text)
        for row in docs.rows
    )
    qrels = {}
    for query_id, judged in docs.qrels.items():
        qrels[EVIL + query_id] = {EVIL + doc_id: grade for doc_id, grade in judged.items()}
    evil = Candidates(EVIL, rows, qrels)
    bench = plain(replace(benched, data=EVIL))
    moments = [{"at_s": i / 5, "cores": 1.0, "root_cores": 1.0} for i in range(3)]
    for measured in bench["measured"]:  # which took less than a second
        measured["rounds"][-1]["usage"]["timeline"] = moments
    return [
        bench,
        plain(validate(tiny, ["torch-fp32", "onnx-fp32", "onnx-int8"], evil)),
    ]


@pytest.fixture(scope="module")
def page(results: list[dict[str, Any]]) -> str:
    return render(gather(results), None, markdown=False)


def test_the_page_opens_with_the_finding_and_stands_alone(page: str) -> None:
    assert page.index('class="finding"') < page.index("<h2>")
    assert "Recommended: <strong>" in page or "No variant that was timed has passed" in page
    assert len(page.encode()) < 1_000_000
    assert not re.search(r"<[a-z][^>]*\b(src|href)\s*=|url\(|@import", page)
    for heading in (
        "Speed against agreement",
        "CPU",
        "Where the time went",
        "Does it rank the same?",
        "All figures",
    ):
        assert heading in page
    assert page.count("<caption>") == page.count("<table")
    assert "Speed against agreement</title>" in page
    assert re.findall(r'aria-labelledby="([^"]+)"', page) == [
        "bench-1-title bench-1-desc",
        "bench-1-narrow-title bench-1-narrow-desc",
    ]


def test_texts_from_data_show_as_text(page: str, results: list[dict[str, Any]]) -> None:
    assert page.count("<script>") == 1  # the page's own, for sorting
    assert "<img" not in page
    assert "&lt;script&gt;alert(" in page
    markdown = render(gather(results), None, markdown=True)
    assert "<script" not in markdown.replace("\\<script", "")
    assert "| " + "onnx-int8/planned" in markdown


def test_all_facts_are_on_the_page(results: list[dict[str, Any]], page: str) -> None:
    shown = unescape(re.sub("</?code>", "`", page))
    markdown = render(gather(results), None, markdown=True).replace("\\", "")
    bench, validation = results
    for measured in bench["measured"]:
        case = measured["case"]
        finding = measured["explained"]["findings"][0]
        for text in (shown, markdown):
            assert f"{case['variant']}/{case['strategy']}" in text
            assert f"{measured['pairs_per_s']:.1f}" in text
            assert finding["advice"] in text
        for fact in ("tokens_per_s", "peak_bytes", "load_s", "p95_s"):
            scale = {"peak_bytes": 1 / (1 << 20), "p95_s": 1000}.get(fact, 1)
            assert f">{measured[fact] * scale:.{1 if fact == 'load_s' else 0}f}<" in page
        for seconds in measured["explained"]["split"].values():
            assert f">{seconds:.2f}<" in page
    for judged in validation["judged"]:
        for result in judged["gates"]:
            for text in (shown, markdown):
                assert f"{result['interval']['mean']:.3f}".replace("-0.000", "0.000") in text
                assert str(result["queries_needed"] or "") in text
    for name, version in bench["versions"].items():
        assert f"{name} {version}" in shown
        assert f"{name} {version}" in markdown


def test_the_fastest_case_stands_first_with_its_figure_at_its_end(
    results: list[dict[str, Any]], page: str
) -> None:
    ratios = sorted((measured["ratio"] for measured in results[0]["measured"]), reverse=True)
    bars = re.findall(r'class="figure"><b>([\d.]+) ×</b> ([\d.]+) pairs/s', page)
    assert [figure for figure, _ in bars] == [f"{ratio:.2f}" for ratio in ratios]


def test_lines_of_the_same_cpu_can_be_told_apart(page: str) -> None:
    lines = re.findall(r'<path class="(tree|parent)" d="([^"]+)"', page)
    assert lines[-2][0] == "tree"
    assert lines[-1] == ("parent", lines[-2][1])  # the same line, and above the other
    widths = {}
    for name in ("tree", "parent"):
        style = re.search(rf"\.{name} {{ stroke: [^}}]*}}", page)
        assert style
        widths[name] = float(re.findall(r"stroke-width: ([\d.]+)", style[0])[0])
    assert widths["tree"] >= 2 * widths["parent"]
    assert "stroke-dasharray" in style[0]


def test_a_bound_that_a_row_contradicts_is_not_shown(results: list[dict[str, Any]]) -> None:
    bench = copy.deepcopy(results[0])
    default = bench["measured"][0]
    default["explained"]["findings"] = [{"name": "padding", "gain": 99.0, "advice": "Sort."}]
    ratios = {measured["case"]["strategy"]: measured["ratio"] for measured in bench["measured"]}
    planned = [
        m for m in bench["measured"] if m["case"] == {**default["case"], "strategy": "planned"}
    ]
    times = planned[0]["ratio"] / ratios["default"]
    for markdown in (False, True):
        shown = render(gather([bench]), None, markdown).replace("\\", "")
        said = f"Measured: torch-fp32/planned is {times:.1f} times as fast."
        assert said in shown
        assert "99.0 times" not in shown


def test_results_are_read_from_files_and_others_refused(
    tmp_path: Path, results: list[dict[str, Any]]
) -> None:
    files = [tmp_path / "bench.json", tmp_path / "validate.json"]
    for file, result in zip(files, results, strict=True):
        file.write_text(json.dumps(result))
    assert read_results(files) == gather(results)
    for text, message in (
        ("{", "cannot be read as JSON"),
        ("[]", "no result of"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BadInput, match=rf"bad.json: .*{message}"):
            read_results([tmp_path / "bad.json"])
    with pytest.raises(BadInput, match=r"none.json: cannot be read"):
        read_results([tmp_path / "none.json"])


def test_a_difference_within_the_noise_is_called_so(results: list[dict[str, Any]]) -> None:
    old = gather(copy.deepcopy(results))
    case = old["benches"][0]["measured"][-1]
    case["rounds"] = [{**case["rounds"][0], "wall_s": 1.0}] * 2
    new = copy.deepcopy(old)
    for factor, within in ((1.05, True), (2.0, False), (0.5, False)):
        new["benches"][0]["measured"][-1]["ratio"] = factor * case["ratio"]
        change = compare(old, new)[-1]
        assert change.within_noise is within
        said = render(new, old, markdown=True)
        assert {1.05: "within the noise", 2.0: "| faster |", 0.5: "| slower |"}[factor] in said
    assert "different machines" not in said
    new["benches"][0]["machine"] = "another"
    new["validations"][0]["judged"][-1]["verdict"] = "pass"
    old["validations"][0]["judged"][-1]["verdict"] = "fail"
    said = render(new, old, markdown=True)
    assert "was fail, now pass" in said
    assert "different machines" in said


def test_a_result_of_a_gpu_has_no_explanation_and_still_a_page(
    results: list[dict[str, Any]],
) -> None:
    bench = json.loads(json.dumps(results[0]))
    bench |= {"device": "cuda", "ceilings": None}
    for measured in bench["measured"]:
        measured["explained"] = None
    assert "device cuda" in render(gather([bench]), None, markdown=False)
    assert "torch-fp32/default" in render(gather([bench]), None, markdown=True)


def test_results_of_a_gpu_and_a_cpu_share_a_page(results: list[dict[str, Any]]) -> None:
    gpu = json.loads(json.dumps(results[0]))
    gpu |= {"device": "cuda", "ceilings": None}
    for measured in gpu["measured"]:
        measured["explained"] = None
        # few candidates a query
        measured["agreement"] = {**(measured["agreement"] or {}), "tau": None, "top10": None}
    for benches in ([results[0], gpu], [gpu, results[0]]):
        shown = render(gather(copy.deepcopy(benches)), None, markdown=False)
        assert "Where the time went" in shown
        assert "device cuda" in shown
        render(gather(copy.deepcopy(benches)), None, markdown=True)


def test_a_cascade_has_no_verdict(results: list[dict[str, Any]]) -> None:
    bench, validation = json.loads(json.dumps(results))
    for judgement in validation["judged"]:
        judgement["verdict"] = "pass"
    fast = copy.deepcopy(bench["measured"][-1])
    fast |= {"ratio": 4321.0, "cascaded": {"share": 0.1, "losses": [0.0, 0.1], "seen": 0}}
    fast["case"]["strategy"] = "cascade"
    bench["measured"].append(fast)
    page = render(gather([bench, validation]), None, markdown=False)
    finding = page[page.index('class="finding"') : page.index("<h2>")]
    assert "cascade" not in finding
    assert "4321" not in finding
    assert "4321" in page[page.index("<h2>") :]


def test_what_was_not_validated_is_not_recommended(results: list[dict[str, Any]]) -> None:
    alone = render(gather(results[:1]), None, markdown=False)
    assert "no <code>xopt validate</code> has shown whether it ranks the same" in alone
    assert "Recommended" not in alone
    judged = render(gather(results[1:]), None, markdown=False)
    assert "Passed: " in judged
    twice = copy.deepcopy(results)
    for judgement in twice[1]["judged"]:
        judgement["verdict"] = "pass"
    both = [*twice, copy.deepcopy(twice[1])]
    both[-1]["judged"][-1]["verdict"] = "fail"
    for order in (both, both[::-1]):  # the worst verdict counts, whichever file comes first
        assert "Failed: onnx-int8." in render(gather(order), None, markdown=True)


def test_a_model_of_several_labels_has_a_report(results: list[dict[str, Any]]) -> None:
    labels = copy.deepcopy(results)
    for judgement in labels[1]["judged"]:
        judgement |= {"verdict": "pass", "losses": [], "gates": []}
        judgement["measures"] = {"labels": judgement["measures"]["tau"]}
    for measured in labels[0]["measured"]:
        measured["agreement"] = None
    assert "and gives the same labels" in render(gather(labels), None, markdown=False)
    assert "and gives the same labels" in render(gather(labels), None, markdown=True)


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed (Debian: apt install chromium)")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_sorts_and_asks_nobody(
    tmp_path: Path, benched: Bench, page: str, width: int
) -> None:
    cases = len(benched.measured)
    # In a frame: a browser's window is 500 pixels wide at the least.
    framed = escape(page.replace("</body>", PROBE + "</body>"))
    file = tmp_path / "report.html"
    file.write_text(
        f'<body style="margin:0"><iframe width="{width}" height="900" srcdoc="{framed}">'
        "</iframe></body>"
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--hide-scrollbars",
    ]
    command = [
        str(CHROMIUM),
        *flags,
        f"--window-size={width},900",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*command, file.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    found = json.loads(unescape(match[1]))
    assert found["sorted"] == sorted(found["sorted"])
    assert len(found["sorted"]) == cases
    assert found["seen"] >= width - 20
    assert found["wide"] <= found["seen"]  # nothing sticks out: what is wide scrolls within itself
    assert found["asked"] == 0
    assert found["headings"] >= 6
    assert found["pictures"] >= 1 + cases
    assert found["smallest"] >= 10
    assert found["names"] == page.count("<circle") / 2  # one of the two charts is shown
    assert found["overlaps"] == 0
