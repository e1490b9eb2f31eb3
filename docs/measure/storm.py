"""Two machines at one folder without the system's locks, and containers killed at random.

    PYTHONPATH=tests python docs/measure/storm.py [lives]

A machine is a process with a host name of its own, for which `flock` does nothing, or fails. A life
is a command as process 1 of a container, killed -9; the same command in the next container has to
work, and to leave nothing of the one before. Every second life is killed as soon as something is
in progress. The model is a tiny random one. Ends with 1 where something is not as it should be.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from helpers.tiny import make_tiny

XOPT = [sys.executable, "-m", "xopt", "-q"]
CONTAINER = ["unshare", "-fp", "--kill-child", "--mount-proc"]
COMMANDS = ("export", "quantize", "tune", "rerank")
ROWS, DEPTH = 200_000, 20  # 49 parts: it takes longer than two processes differ in their begin
WRITES = 100
MACHINE = """
import fcntl, os, socket
def flock(*_):
    if os.environ["FLOCK"] != "nothing":
        raise OSError(int(os.environ["FLOCK"]), "flock fails")
fcntl.flock = flock
socket.gethostname = lambda: os.environ["HOST"]
"""
WRITE = f"""
import os, sys
from dataclasses import replace
from xopt.runtime.folder import ModelFolder, Plan
for i in range({WRITES}):
    plans = {{f"{{os.environ['FLOCK']}} {{os.environ['HOST']}} {{i}}": {{"x": Plan(1, 1, 512)}}}}
    ModelFolder.open(sys.argv[1]).write(lambda old: replace(old, plans=old.plans | plans))
"""


def candidates(file: Path) -> None:
    numbers = range(ROWS)
    table = {
        "query_id": [f"q{i // DEPTH}" for i in numbers],
        "query": [f"data {i // DEPTH}" for i in numbers],
        "doc_id": [f"d{i}" for i in numbers],
        "text": [f"index {i % 977}" for i in numbers],
    }
    pq.write_table(pa.table(table), file)


def command(name: str, place: Path) -> list[str]:
    """A command that makes or changes something in `place`."""
    folder = str(place.parent / "kept" if name == "rerank" else place / "made")
    return {
        "export": [*XOPT, "export", str(place.parent / "bert"), "-o", folder, "--force"],
        "quantize": [*XOPT, "quantize", folder, "--int8", "--scheme", "stock"],
        "tune": [*XOPT, "tune", folder, "--variant", "onnx-fp32", "--queries", "4"],
        "rerank": [
            *XOPT,
            "rerank",
            folder,
            str(place.parent / "data.parquet"),
            "-o",
            str(place / "out.jsonl"),
            "--force",
        ],
    }[name]


def begun(
    asked: list[str], scratch: Path, host: str = "", flock: str = ""
) -> subprocess.Popen[str]:
    """Begin a command, on a machine of that name if one is given."""
    env = dict(os.environ)
    if host:
        path = os.pathsep.join([str(scratch / "machine"), env.get("PYTHONPATH", "")])
        env |= {"PYTHONPATH": path, "HOST": host, "FLOCK": flock}
    pipe = subprocess.PIPE
    return subprocess.Popen(asked, env=env, stdout=pipe, stderr=pipe, text=True)


def in_progress(place: Path) -> list[str]:
    """What is in progress there: locks, and what is not complete."""
    return sorted(str(path.relative_to(place)) for path in place.rglob(".*"))


def drivers(scratch: Path, flock: str, more: list[str]) -> str:
    """Give one job on two machines at once. Returns what is wrong."""
    place = scratch / f"drivers-{flock}{''.join(more)}"
    place.mkdir()
    asked = [*command("rerank", place)[:-1], *more]
    both = [begun(asked, scratch, host, flock) for host in ("host-a", "host-b")]
    said = [process.communicate()[1].strip() for process in both]
    codes = sorted(process.returncode for process in both)
    refusal = "".join(said)
    if codes != [0, 2] or "another process works" not in refusal or "\n" in refusal:
        return f"exit codes {codes}: {refusal[-200:]}"
    if (place / "out.jsonl").read_bytes() != (scratch / "whole" / "out.jsonl").read_bytes():
        return "another result"
    return ", ".join(in_progress(place))


def writers(scratch: Path, flock: str) -> str:
    """Write into one manifest from two machines. Returns what is wrong."""
    folder = scratch / "kept"
    asked = [sys.executable, "-c", WRITE, str(folder)]
    both = [begun(asked, scratch, host, flock) for host in ("host-a", "host-b")]
    said = [process.communicate()[1][-200:] for process in both]
    plans = json.loads((folder / "xopt.json").read_text())["plans"]
    kept = sum(name.startswith(f"{flock} ") for name in plans)
    return "" if kept == 2 * WRITES else f"{kept} of {2 * WRITES} are kept: {said}"


def life(scratch: Path, number: int, took_s: dict[str, float]) -> tuple[str, str]:
    """Kill a container, and begin the next. Returns what was done, and what is wrong."""
    name = COMMANDS[number % len(COMMANDS)]
    draw = random.Random(number)
    place = scratch / "whole"
    start = time.monotonic()
    container = begun([*CONTAINER, *command(name, place)], scratch)
    moment = draw.uniform(0, took_s[name])
    if number // len(COMMANDS) % 2:
        while container.poll() is None and not in_progress(place):
            time.sleep(0.001)
        moment = time.monotonic() - start + draw.uniform(0, 0.05)
    time.sleep(max(0.0, start + moment - time.monotonic()))
    for process in psutil.Process(container.pid).children():
        process.kill()
    container.communicate()
    left = in_progress(place)
    did = f"{name:9} killed after {moment:5.1f} s, left {len(left)}"
    again = begun([*CONTAINER, *command(name, place)], scratch)
    said = again.communicate()[1].strip()
    if again.returncode:
        return did, f"the next one: exit code {again.returncode}: {said[-200:]}"
    return did, ", ".join(in_progress(place))


def prepared(scratch: Path) -> dict[str, float]:
    """Make what the storms need. Returns how long each command takes."""
    make_tiny(scratch / "bert")
    candidates(scratch / "data.parquet")
    (scratch / "machine").mkdir()
    (scratch / "machine" / "sitecustomize.py").write_text(MACHINE)
    (scratch / "whole").mkdir()
    kept = [*XOPT, "export", str(scratch / "bert"), "-o", str(scratch / "kept")]
    subprocess.run(kept, check=True, stdout=subprocess.DEVNULL)
    took_s = {}
    for name in COMMANDS:
        start = time.monotonic()
        subprocess.run(command(name, scratch / "whole"), check=True, stdout=subprocess.DEVNULL)
        took_s[name] = time.monotonic() - start
    return took_s


def main() -> int:
    lives = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    faults = 0

    def tell(what: str, wrong: str) -> None:
        nonlocal faults
        faults += bool(wrong)
        print(f"{what:44} {f'WRONG: {wrong}' if wrong else 'right'}", flush=True)

    with tempfile.TemporaryDirectory(prefix="xopt-storm-") as folder:
        scratch = Path(folder)
        took_s = prepared(scratch)
        for flock in ("nothing", "38", "37", "9"):
            tell(f"two drivers, flock {flock}", drivers(scratch, flock, []))
            tell(f"two drivers, flock {flock}, --force", drivers(scratch, flock, ["--force"]))
            tell(f"two writers, flock {flock}", writers(scratch, flock))
        if subprocess.run([*CONTAINER, "true"], check=False, capture_output=True).returncode:
            print("no containers: unshare is not there, or not permitted")
            return 1
        for number in range(lives):
            did, wrong = life(scratch, number, took_s)
            tell(f"life {number + 1:3} {did}", wrong)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
