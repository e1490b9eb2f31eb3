from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.machines import CONTAINER, begun, containers, mark_of, on_machine

from xopt.runtime import owners
from xopt.runtime.owners import HOST, in_progress, is_left_behind, lives, new_mark

DEAD_PID = 2**22 + 1  # above the kernel's largest
WORK = """
place = here / f"a.new-{owners.new_mark()}"
place.mkdir()
with owners.in_progress(place):
    print(place.name, flush=True)
    sys.stdin.readline()
"""


def left_behind(folder: Path, mark: str, age_s: float = 0.0) -> bool:
    place = folder / f".a.new-{mark}"
    place.mkdir(exist_ok=True)
    then = time.time() - age_s
    os.utime(place, (then, then))
    return is_left_behind(place, mark)


def test_no_mark_comes_again(tmp_path: Path) -> None:
    assert len({new_mark() for _ in range(1000)}) == 1000
    assert lives(new_mark(), tmp_path)


def test_a_process_is_known_by_its_number_and_its_start(tmp_path: Path) -> None:
    assert lives(mark_of(start="1"), tmp_path) is False
    assert lives(mark_of(pid=str(DEAD_PID)), tmp_path) is False
    assert lives(mark_of(machine="0" * 8), tmp_path) is None
    assert lives("no mark", tmp_path) is None


def test_a_process_that_ended_is_dead_though_nobody_asked_for_it(tmp_path: Path) -> None:
    script = "from xopt.runtime.owners import new_mark; print(new_mark())"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    mark = process.stdout.readline().strip()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert lives(mark, tmp_path) is False
    process.communicate()


@pytest.mark.skipif(not containers(), reason="unshare is not permitted")
@pytest.mark.parametrize("flock", ["works", "38"])
def test_a_process_of_another_container_is_known_by_its_lock(tmp_path: Path, flock: str) -> None:
    host = os.uname().nodename
    with begun(on_machine(host, WORK, tmp_path, flock=flock, within=CONTAINER)):
        (place,) = tmp_path.iterdir()
        mark = place.name.removeprefix("a.new-")
        # Process 1 lives here, too, and is another one.
        assert "-1-" in mark
        assert lives(mark, place) is (flock == "works")


@pytest.mark.parametrize(
    ("mark", "age_s", "left"),
    [
        (mark_of(), 1e6, False),
        (mark_of(start="1"), 0, True),
        (mark_of(machine="0" * 8), 600, False),
        (mark_of(machine="0" * 8), -1e6, False),
        (mark_of(machine="0" * 8), 4000, True),
        (f"{HOST}-{DEAD_PID}", 0, True),
        (f"{HOST}-{os.getpid()}", 0, True),  # a container that was restarted
        (f"{HOST}-{os.getppid()}", 4000, False),
        (f"{HOST}-{os.getppid()}", 1e6, True),
        (f"elsewhere-{DEAD_PID}", 4000, False),
        (f"elsewhere-{DEAD_PID}", 1e6, True),
        (str(DEAD_PID), 1e6, False),
        ("a-user-s-own", 1e6, False),
    ],
    # Marks are new in each of the processes that tests are spread over.
    ids=[
        "alive",
        "dead",
        "another machine",
        "another machine, its clock ahead",
        "another machine, long ago",
        "old name, dead",
        "old name, this process",
        "old name, alive",
        "old name, alive, long ago",
        "old name, another machine",
        "old name, another machine, long ago",
        "a number alone",
        "another name",
    ],
)
def test_what_dead_processes_left_is_told_by_marks_and_by_age(
    tmp_path: Path, mark: str, age_s: float, left: bool
) -> None:
    assert left_behind(tmp_path, mark, age_s) is left
    assert [path.name for path in tmp_path.iterdir()] == [f".a.new-{mark}"]


def test_what_is_in_progress_is_never_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "RENEW_S", 0.01)
    for place in (tmp_path / "file", tmp_path / "folder"):
        place.touch() if place.name == "file" else place.mkdir()
        os.utime(place, (0, 0))
        with in_progress(place):
            while place.stat().st_mtime == 0:
                time.sleep(0.01)


def test_where_processes_cannot_be_seen_no_number_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as /proc of another container shows it
    mark = new_mark()
    assert lives(mark, tmp_path) is False
    with in_progress(tmp_path):
        assert lives(mark, tmp_path)


def test_locks_that_do_nothing_tell_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = mark_of(namespace="1")
    assert lives(elsewhere, tmp_path) is False
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    assert lives(elsewhere, tmp_path) is None
