"""The README's picture: speed of each case of a result, as SVG.

xopt optimize demo --json demo.json; python docs/measure/picture.py demo.json > docs/speed.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NAMES = {
    "torch-fp32/default": "sentence-transformers, torch FP32",
    "torch-fp32/concurrent": "four workers (max_concurrency=4)",
    "onnx-fp32/default": "sentence-transformers, ONNX FP32",
    "torch-fp32/planned": "xopt, torch FP32, planned",
    "onnx-fp32/planned": "xopt, ONNX FP32, planned",
    "openvino-fp32/planned": "xopt, OpenVINO FP32, planned",
    "openvino-bf16/planned": "xopt, OpenVINO bfloat16, planned",
    "onnx-int8/planned": "xopt, ONNX INT8, planned",
    "openvino-int8/planned": "xopt, OpenVINO INT8, planned",
}
TITLE = "Pairs a second inside a Daft UDF, times sentence-transformers' default"
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" role="img" aria-labelledby="t" \
font-family="sans-serif" font-size="14">
<title id="t">{title}: {said}</title>
<rect width="760" height="{height}" fill="#ffffff"/>
<text x="16" y="26" fill="#1f2328" font-weight="bold">{title}</text>"""
BAR = """<text x="260" y="{y}" text-anchor="end" fill="#1f2328">{name}</text>
<rect x="270" y="{top}" width="{width}" height="24" rx="3" fill="{color}"/>
<text x="{end}" y="{y}" fill="#1f2328">{ratio:.2f} x</text>"""


def main(result: Path) -> None:
    measured = json.loads(result.read_text(encoding="utf-8"))["bench"]["measured"]
    ratios = {f"{m['case']['variant']}/{m['case']['strategy']}": m["ratio"] for m in measured}
    rows = [
        (name, ratios[case], case.endswith("/planned"))
        for case, name in NAMES.items()
        if case in ratios
    ]
    longest = max(ratio for _, ratio, _ in rows)
    said = ", ".join(f"{name} {ratio:.2f} times" for name, ratio, _ in rows)
    print(HEAD.format(height=44 + 36 * len(rows), title=TITLE, said=said))
    for number, (name, ratio, ours) in enumerate(rows):
        top, width = 44 + 34 * number, round(428 * ratio / longest)
        color = "#1a7f37" if ours else "#8c959f"
        print(
            BAR.format(
                y=top + 17,
                name=name,
                top=top,
                width=width,
                color=color,
                end=278 + width,
                ratio=ratio,
            )
        )
    print("</svg>")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
