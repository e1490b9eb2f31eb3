from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers.machines import CONTAINER, FLOCKS, begun, containers, mark_of, names_in, on_machine

from xopt.runtime import locks, owners
from xopt.runtime.errors import BadInput
from xopt.runtime.locks import LOCK, locked

HOLD = """
with locks.locked(here) as lock:
    print("in", flush=True)
    sys.stdin.readline()
    lock.check()
"""
COUNT = """
for _ in range(30):
    with locks.locked(here):
        count = int((here / "count").read_text())
        time.sleep(0.001)
        (here / "count").write_text(str(count + 1))
"""
NEVER_S = 1e9


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.05)
    monkeypatch.setattr(locks, "STALE_S", NEVER_S)
    monkeypatch.setattr(owners, "RENEW_S", 0.1)


def others_lock(folder: Path, mark: str = "") -> Path:
    """A lock of another machine, whose process nobody sees."""
    file = folder / LOCK
    file.write_text(f"{mark or mark_of(machine='0' * 8)} elsewhere")
    return file


@pytest.mark.parametrize("flock", FLOCKS)
def test_processes_of_two_machines_take_turns(tmp_path: Path, flock: str) -> None:
    (tmp_path / "count").write_text("0")
    both = [on_machine(host, COUNT, tmp_path, flock=flock) for host in ("host-a", "host-b")]
    assert [process.communicate()[1] for process in both] == ["", ""]
    assert (tmp_path / "count").read_text() == "60"
    assert names_in(tmp_path) == ["count"]


def test_threads_of_one_process_take_turns(tmp_path: Path) -> None:
    counts: list[int] = []

    def work() -> None:
        for _ in range(10):
            with locked(tmp_path):
                count = len(counts)
                time.sleep(0.001)
                counts[count:] = [count]

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == list(range(40))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("flock", ["works", "nothing"])
@pytest.mark.parametrize("host", [os.uname().nodename, "host-a"])
def test_a_living_owner_is_named_to_who_does_not_wait(
    tmp_path: Path, flock: str, host: str
) -> None:
    with begun(on_machine(host, HOLD, tmp_path, flock=flock)) as owner:
        with (
            pytest.raises(BlockingIOError, match=f"process {owner.pid} on {host[:4]}"),
            locked(tmp_path, wait=False),
        ):
            raise AssertionError("not reached")
        assert names_in(tmp_path) == [LOCK]
        assert owner.communicate("\n") == ("", "")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("flock", ["works", "nothing", "37"])
def test_the_lock_of_a_killed_process_of_this_machine_is_free_at_once(
    tmp_path: Path, flock: str
) -> None:
    with begun(on_machine(os.uname().nodename, HOLD, tmp_path, flock=flock)) as owner:
        os.kill(owner.pid, signal.SIGKILL)
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, and not asked for yet
        with locked(tmp_path, wait=False) as lock:
            lock.check()
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not containers(), reason="unshare is not permitted")
def test_the_lock_of_a_killed_container_of_this_name_is_free_at_once(tmp_path: Path) -> None:
    host = os.uname().nodename
    container = on_machine(host, HOLD, tmp_path, flock="works", within=CONTAINER)
    with begun(container), pytest.raises(BlockingIOError), locked(tmp_path, wait=False):
        raise AssertionError("not reached")
    while owners._is_flocked(tmp_path / LOCK):
        time.sleep(0.01)
    with locked(tmp_path, wait=False) as lock:
        lock.check()
    assert names_in(tmp_path) == []


def test_a_process_that_has_the_number_of_a_dead_one_is_another(tmp_path: Path) -> None:
    others_lock(tmp_path, mark_of(start="1"))
    with locked(tmp_path, wait=False) as lock:
        lock.check()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("ahead_s", [-1e8, 0, 1e8])
@pytest.mark.parametrize("text", ["of another machine", ""])
def test_an_old_lock_is_taken_over_however_clocks_differ(
    tmp_path: Path, ahead_s: float, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "STALE_S", 0.2)
    file = others_lock(tmp_path)
    if not text:  # killed before it wrote whose it is
        file.write_text("")
    os.utime(file, (time.time() + ahead_s, time.time() + ahead_s))
    with locked(tmp_path, wait=False) as lock:
        lock.check()
    assert names_in(tmp_path) == []


def test_several_that_wait_for_a_dead_owner_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "STALE_S", 0.2)
    monkeypatch.setattr(locks, "SETTLE_S", 1.0)  # eight threads at once may be slow
    others_lock(tmp_path)
    inside: list[int] = []

    def work() -> None:
        with locked(tmp_path) as lock:
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0.02)
            lock.check()
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == []
    assert names_in(tmp_path) == []


def test_a_process_that_stood_still_notices_that_its_lock_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "STALE_S", 0.5)
    with begun(on_machine("host-a", HOLD, tmp_path)) as owner:
        owner.send_signal(signal.SIGSTOP)
        with locked(tmp_path) as lock:
            owner.send_signal(signal.SIGCONT)
            said = owner.communicate("\n")[1]
            assert "another process took over here while this one stood still" in said
            lock.check()  # the other one's end does not take it away
    assert names_in(tmp_path) == []


def test_a_lock_that_cannot_be_made_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="cannot be written"), locked(tmp_path / "nothing"):
        raise AssertionError("not reached")

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(BadInput, match="No space left"), locked(tmp_path):
            raise AssertionError("not reached")
    assert names_in(tmp_path) == []


def test_an_error_within_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    assert names_in(tmp_path) == []


def test_what_one_left_that_was_killed_as_it_took_over_is_removed(tmp_path: Path) -> None:
    others_lock(tmp_path, mark_of(start="1"))
    (tmp_path / f"{LOCK}.new-{mark_of(start='2')}").touch()
    with locked(tmp_path):
        pass
    assert names_in(tmp_path) == []


def test_a_lock_that_is_no_text_is_taken_over_when_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "STALE_S", 0.2)
    (tmp_path / LOCK).write_bytes(b"\xff\xfe")
    with locked(tmp_path) as lock:
        assert lock.is_own()
