"""Writes what this version of xopt keeps on disk, which later versions have to read.

Run it once before a release: `cd tests; python -m helpers.golden` makes `tests/golden/VERSION`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.tiny import make_tiny
from xopt.optimize.cascade.certify import certify
from xopt.optimize.export import export
from xopt.runtime import rerank_files
from xopt.runtime.cascade.fingerprint import model_fingerprint
from xopt.runtime.data.candidates import demo_candidates
from xopt.runtime.folder import Manifest, Plan
from xopt.runtime.jobs.inputs import parts
from xopt.runtime.jobs.score import PartScorer

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = "model"
INPUTS = ("candidates.parquet", "more.jsonl")
OUT = "ranked.jsonl"
FINGERPRINTS = "fingerprints.json"
VARIANT = "onnx-fp32"
ELSEWHERE = "/data"  # where the folder lay when the job was begun


def write(folder: Path) -> None:
    """Write a manifest with all that it can hold, and a job that was stopped after a part."""
    model = export(str(make_tiny(folder / "tiny")), folder / MODEL)
    certify(
        model,
        demo_candidates(queries=24, depth=12),
        VARIANT,
        first="given",
        max_loss=0.5,
        top=3,
        confidence=0.8,
    )
    measured = {"a machine": {"recommended": VARIANT, "variants": {VARIANT: {"pairs_s": 1.0}}}}
    plans = {"a machine": {VARIANT: Plan(callers=2, threads=1, tokens=512)}}

    def filled(manifest: Manifest) -> Manifest:
        return replace(manifest, measured=measured, plans=plans, trained_with=["0123456789abcdef"])

    model = model.write(filled)
    _begin_a_job(folder)
    fingerprints = {
        "without a cascade": model_fingerprint(model, VARIANT, cascade=False),
        "with the cascade": model_fingerprint(model, VARIANT, cascade=True),
    }
    (folder / FINGERPRINTS).write_text(json.dumps(fingerprints, indent=2) + "\n")


def _begin_a_job(folder: Path) -> None:
    """Begin a job of two inputs and two parts, and stop within the second part."""
    rows = [{"query": f"data {i // 4}", "doc_id": i, "text": f"index {i}"} for i in range(16)]
    pq.write_table(pa.Table.from_pylist(rows[:8]), folder / INPUTS[0])
    (folder / INPUTS[1]).write_text("".join(f"{json.dumps(row)}\n" for row in rows[8:]))
    parts.PART_ROWS["cpu"] = 8
    read = PartScorer.read

    def read_one(self: PartScorer, part: parts.Part) -> object:
        if part.number == 1:
            raise KeyboardInterrupt
        return read(self, part)

    PartScorer.read = read_one  # type: ignore[method-assign,assignment] # to stop there
    try:
        inputs = [folder / name for name in INPUTS]
        rerank_files(folder / MODEL, inputs, folder / OUT, variant=VARIANT)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not stopped")


def _keep(folder: Path, kept: Path) -> None:
    """Copy what is to be kept, without the model's files and any path of this machine."""
    (kept / MODEL).mkdir(parents=True)
    shutil.copy(folder / MODEL / "xopt.json", kept / MODEL)
    for name in (*INPUTS, FINGERPRINTS):
        shutil.copy(folder / name, kept)
    shutil.copytree(folder / f"{OUT}.job", kept / f"{OUT}.job")
    for file in kept.rglob("*.json"):
        file.write_text(file.read_text().replace(str(folder), ELSEWHERE))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch).resolve())
        _keep(Path(scratch).resolve(), GOLDEN / version("xopt-rerank"))
