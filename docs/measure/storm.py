"""Two machines at one folder without the system's locks, and containers killed at random.

    PYTHONPATH=tests python docs/measure/storm.py [lives]

A machine is a process with a host name of its own, for which `flock` does nothing, or fails. A life
is a command as process 1 of a container, killed -9. The same command in the next container has to
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
from helpers.tiny import make_tiny

XOPT = (sys.executable, "-m", "xopt", "-q")
CONTAINER = ("unshare", "-fp", "--kill-child", "--mount-proc")
COMMANDS = ("export", "quantize", "tune", "rerank")
ROWS = 200_000  # work for longer than two processes differ in their begin
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


def command(name: str, place: Path) -> list[str]:
    """A command that makes or changes something in `place`."""
    folder = str(place.parent / "kept" if name == "rerank" else place / "made")
    data, out = str(place.parent / "data.jsonl"), str(place / "out.jsonl")
    arguments = {
        "export": [str(place.parent / "bert"), "-o", folder, "--force"],
        "quantize": [folder, "--int8", "--scheme", "stock"],
        "tune": [folder, "--variant", "onnx-fp32", "--queries", "4"],
        "rerank": [folder, data, "-o", out, "--force"],
    }
    return [*XOPT, name, *arguments[name]]


def begun(asked: list[str], scratch: Path, **machine: str) -> subprocess.Popen[str]:
    """Begin a command, on a machine with a HOST and a FLOCK if they are given."""
    env = {**os.environ, **machine}
    if machine:
        env["PYTHONPATH"] = f"{scratch / 'machine'}:{os.environ.get('PYTHONPATH', '')}"
    pipe = subprocess.PIPE
    return subprocess.Popen(asked, env=env, stdout=pipe, stderr=pipe, text=True)


def on_two_machines(asked: list[str], scratch: Path, flock: str) -> tuple[list[int], str]:
    """Give one command on two machines at once. Returns the exit codes, and what they said."""
    both = [begun(asked, scratch, HOST=host, FLOCK=flock) for host in ("host-a", "host-b")]
    said = [process.communicate()[1].strip() for process in both]
    return sorted(process.returncode for process in both), "".join(said)


def in_progress(place: Path) -> str:
    """What is in progress there: locks, and what is not complete."""
    return " ".join(sorted(str(path.relative_to(place)) for path in place.rglob(".*")))


def drivers(scratch: Path, flock: str, *more: str) -> str:
    """Let two machines do one job. Returns what is wrong."""
    place = scratch / f"drivers-{flock}{''.join(more)}"
    place.mkdir()
    asked = [*command("rerank", place)[:-1], *more]
    codes, said = on_two_machines(asked, scratch, flock)
    if codes != [0, 2] or "another process works" not in said or "\n" in said:
        return f"exit codes {codes}: {said[-200:]}"
    if (place / "out.jsonl").read_bytes() != (scratch / "whole" / "out.jsonl").read_bytes():
        return "another result"
    return in_progress(place)


def writers(scratch: Path, flock: str) -> str:
    """Let two machines write into one manifest. Returns what is wrong."""
    folder = scratch / "kept"
    said = on_two_machines([sys.executable, "-c", WRITE, str(folder)], scratch, flock)[1]
    plans = json.loads((folder / "xopt.json").read_text())["plans"]
    kept = sum(name.startswith(f"{flock} ") for name in plans)
    return in_progress(folder) if kept == 2 * WRITES else f"{kept} are kept: {said[-200:]}"


def life(scratch: Path, number: int, took_s: dict[str, float]) -> tuple[str, str]:
    """Kill a container, and begin the next. Returns what was done, and what is wrong."""
    name = COMMANDS[number % len(COMMANDS)]
    draw = random.Random(number)
    place = scratch / "whole"
    asked = [*CONTAINER, *command(name, place)]
    start = time.monotonic()
    container = begun(asked, scratch)
    if number // len(COMMANDS) % 2:
        looks = 0
        while container.poll() is None and looks < 2:  # a trial of the place is gone by the second
            looks = looks + 1 if in_progress(place) else 0
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
    else:
        time.sleep(draw.uniform(0, took_s[name]))
    did = f"{name:8} killed after {time.monotonic() - start:4.1f} s"
    for process in psutil.Process(container.pid).children():
        process.kill()
    container.communicate()
    did += f", left: {in_progress(place) or 'nothing':.60}"
    again = begun(asked, scratch)
    said = again.communicate()[1].strip()
    if again.returncode:
        return did, f"the next one: exit code {again.returncode}: {said[-200:]}"
    return did, in_progress(place)


def prepared(scratch: Path) -> dict[str, float]:
    """Make what the storms need. Returns how long each command takes."""
    make_tiny(scratch / "bert")
    with (scratch / "data.jsonl").open("w") as data:
        for i in range(ROWS):
            row = {"query": f"data {i // 20}", "text": f"index {i % 977}", "doc_id": i}
            data.write(f"{json.dumps(row)}\n")
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


def told(what: str, wrong: str) -> bool:
    """Print a row of the table, and tell whether something is wrong."""
    print(f"{what}: {f'WRONG: {wrong}' if wrong else 'right'}", flush=True)
    return bool(wrong)


def main() -> int:
    lives = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    faults = 0
    with tempfile.TemporaryDirectory(prefix="xopt-storm-") as folder:
        scratch = Path(folder)
        took_s = prepared(scratch)
        for flock in ("nothing", "38", "37", "9"):
            faults += told(f"two drivers, flock {flock}", drivers(scratch, flock))
            faults += told(f"the same, --force, flock {flock}", drivers(scratch, flock, "--force"))
            faults += told(f"two writers, flock {flock}", writers(scratch, flock))
        if subprocess.run([*CONTAINER, "true"], check=False, capture_output=True).returncode:
            print("no containers: unshare is not permitted here")
            return 1
        for number in range(lives):
            did, wrong = life(scratch, number, took_s)
            faults += told(f"life {number + 1}: {did}", wrong)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
