"""The runs behind the documentation's figures: one JSON file a run and machine in docs/results/.

python docs/generate/results.py RUN RESULT.json --machine NAME

keeps the result of a command or a script of docs/measure/ as docs/results/RUN-MACHINE.json, with
the date, the commit, the processor and its instruction sets. RUN is one of `RUNS`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
# What gives the result of each run; all write it with `--json FILE`.
RUNS = {
    "in-daft": "xopt optimize demo",
    "peers": "xopt bench DIR --strategy planned --peers --pairs 320 --explain",
    "one-query": "python docs/measure/latency.py DIR",
    "long-pairs": "PYTHONPATH=tests python docs/measure/memory.py",
    "files": "python docs/measure/jobs.py rate DIR",
    "many-pairs": "python docs/measure/jobs.py memory DIR 1000000",
    "servers": "python docs/measure/serve_rivals.py DIR",
    "serve-rate": "python docs/measure/serving.py rate DIR",
    "serve-latency": "python docs/measure/serving.py latency DIR",
    "serve-fair": "python docs/measure/serving.py fair DIR",
    "serve-same": "python docs/measure/serving.py same DIR",
    "serve-soak": "python docs/measure/serve_soak.py DIR",
}
# What tells processors apart for this project; see docs/reference/limits.md.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_bf16": "AMX",
    "asimddp": "dot product",
}
# Texts of documents, and samples in time: large, and no figure of the documentation.
LEFT_OUT = {"losses", "timeline"}


@dataclass(frozen=True)
class Run:
    """A result with where it is from."""

    run: str
    machine: str
    processor: str
    instruction_sets: list[str]
    date: str
    commit: str
    command: str
    result: Any

    @property
    def file(self) -> str:
        """The name of the run's file in docs/results/."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.machine.lower()).strip("-")
        return f"{self.run}-{slug}.json"


def runs(folder: Path = RESULTS) -> list[Run]:
    """Return all runs that are kept, the newest first."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")]
    kept = [
        Run(**{**value, "instruction_sets": tuple(value["instruction_sets"])}) for value in found
    ]
    return sorted(kept, key=lambda each: (each.date, each.file), reverse=True)


def newest(name: str, kept: list[Run]) -> Run:
    """Return the newest run of a name."""
    return next(each for each in kept if each.run == name)


def trimmed(value: Any) -> Any:
    """Return a result without what no figure needs, and floats with six digits."""
    if isinstance(value, dict):
        return {key: trimmed(each) for key, each in value.items() if not _left_out(key, each)}
    if isinstance(value, list):
        return [trimmed(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return value


def _left_out(key: str, value: Any) -> bool:
    """Tell whether a value is long and no figure; a cascade's losses are plain numbers."""
    if key not in LEFT_OUT or not isinstance(value, list):
        return False
    return any(isinstance(each, dict) for each in value)


def instruction_sets() -> list[str]:
    """Return the names of this processor's instruction sets that matter."""
    from xopt.runtime.machine import cpu_flags

    names = [name for flag, name in INSTRUCTION_SETS.items() if flag in cpu_flags()]
    return list(dict.fromkeys(names))


def main() -> None:
    """Keep a result."""
    from xopt.runtime.machine import cpu_name

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("result", type=Path)
    parser.add_argument("--machine", required=True, help="such as 'Intel Xeon, Sapphire Rapids'")
    parser.add_argument("--command", help="what gave the result; that of `RUNS` if not given")
    parser.add_argument("--commit", help="of the code that was measured; HEAD if not given")
    given = parser.parse_args()
    head = subprocess.run(
        ["git", "rev-parse", "--short", given.commit or "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(given.result.read_text(encoding="utf-8"))
    kept = Run(
        run=given.run,
        machine=given.machine,
        processor=cpu_name(),
        instruction_sets=instruction_sets(),
        date=datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        commit=head.stdout.strip(),
        command=given.command or RUNS[given.run],
        result=trimmed(result),
    )
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(kept.__dict__, indent=1, ensure_ascii=False)
    (RESULTS / kept.file).write_text(text + "\n", encoding="utf-8")
    print(f"docs/results/{kept.file}: {len(text) // 1024} KiB")


if __name__ == "__main__":
    main()
