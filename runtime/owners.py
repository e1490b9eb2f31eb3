"""Who works at a file or a folder, and whether that process still lives.

What is in progress carries its owner's mark. A mark never comes again. A container that is
restarted has the host name and the process number of the one before, but began at another time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

__all__ = [
    "HOST",
    "flocked",
    "in_progress",
    "is_left_behind",
    "lives",
    "new_mark",
    "process_of",
    "renewed",
]

RENEW_S = 2.0  # how often an owner renews the time of what it works at
LEFT_S = 3600.0  # what another machine's process has not renewed for so long is left behind
# Before marks, names ended in host and process. Nobody renewed them.
OLD_LEFT_S = 24 * 3600.0
SHARES = ("cifs", "smb3")
HOST = re.sub(r"[\W_]", "_", socket.gethostname())
MARK = re.compile(
    r"(?P<machine>[0-9a-f]{8})-(?P<namespace>[0-9a-f]+)-(?P<pid>\d+)-(?P<start>[0-9a-f]*)-[0-9a-f]{8}"
)
OLD_MARK = re.compile(r"(?P<host>\w+)-(?P<pid>\d+)")


def _machine() -> str:
    """A name for this machine since it was started, or for this container's part of it."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:8]


MACHINE = _machine()


def new_mark() -> str:
    """Return a mark of this process that no other call has returned or will return."""
    pid = os.getpid()
    return f"{MACHINE}-{_namespace()}-{pid}-{_start_of(pid) or ''}-{secrets.token_hex(4)}"


def process_of(mark: str) -> str:
    """Return the number of the process that a mark is of, or nothing."""
    found = MARK.fullmatch(mark)
    return found["pid"] if found else ""


def lives(mark: str, place: Path) -> bool | None:
    """Tell whether the process lives that works at `place`; None where that cannot be seen here.

    In another container of this machine its lock on `place` tells: with the process it goes.
    """
    found = MARK.fullmatch(mark)
    if found is None or found["machine"] != MACHINE:
        return None
    if found["namespace"] != _namespace():
        return _is_flocked(place)
    start = _start_of(int(found["pid"]))
    return None if start == "" else start == found["start"]


def is_left_behind(place: Path, mark: str) -> bool:
    """Tell whether `place`, whose name ends in `mark`, is what a dead process left."""
    if MARK.fullmatch(mark):
        alive = lives(mark, place)
        return _age_s(place, mark) > LEFT_S if alive is None else not alive
    old = OLD_MARK.fullmatch(mark)
    if old is None:
        return False  # no name of ours
    pid = int(old["pid"])
    if old["host"] == HOST and (pid == os.getpid() or _start_of(pid) is None):
        return True
    return _age_s(place, mark) > OLD_LEFT_S


@contextlib.contextmanager
def in_progress(place: Path) -> Iterator[None]:
    """Show other processes, of all machines, that this one works at a file or a folder."""
    with flocked(place), renewed(lambda: os.utime(place)):
        yield


@contextlib.contextmanager
def flocked(place: Path) -> Iterator[None]:
    """Hold a lock on a file or a folder that ends with the process, where there are such locks."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = None
    with contextlib.suppress(OSError):  # shared file systems may have no such locks
        descriptor = _opened(place)
        if not _forbids_writing(os.fstat(descriptor).st_dev):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def renewed(renew: Callable[[], None]) -> Iterator[None]:
    """Call `renew` every few seconds, in a thread."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(RENEW_S):
            with contextlib.suppress(OSError):
                renew()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_flocked(place: Path) -> bool | None:
    """Tell whether a process of this machine holds `place`; None where there are no such locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    descriptors = []
    try:
        for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):
            descriptors.append(_opened(place))
            fcntl.flock(descriptors[-1], kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return len(descriptors) == 1  # the second was held off by the first: locks work here
    except OSError:
        return None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return None


@functools.cache
def _forbids_writing(device: int) -> bool:
    """Whether locks on a file system keep also their owner from writing by another handle.

    Windows' shares do so, by Linux' driver for them.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        for mount in mounts.splitlines():
            place, _, source = mount.partition(" - ")
            if place.split()[2] == number:
                return source.split()[0] in SHARES
    return False


def _opened(place: Path) -> int:
    """Open a file or a folder to lock it. NFS locks no file that is open for reading only."""
    return os.open(place, os.O_RDONLY if place.is_dir() else os.O_RDWR)


def _namespace() -> str:
    """Within what process numbers mean one process each, such as a container.

    Where that cannot be seen it is something new each time, so that no number is trusted.
    """
    if sys.platform != "linux":
        return "0"
    with contextlib.suppress(OSError):
        if Path("/proc/self").readlink().name == str(os.getpid()):
            return f"{Path('/proc/self/ns/pid').stat().st_ino:x}"
    return secrets.token_hex(4)


def _start_of(pid: int) -> str | None:
    """When a process began: "" where that is hidden, None where no such process lives."""
    if sys.platform != "linux":
        try:
            return f"{round(psutil.Process(pid).create_time() * 100):x}"
        except psutil.NoSuchProcess:
            return None
        except psutil.AccessDenied:
            return ""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "" if _exists(pid) else None
    state, *values = stat.rpartition(")")[2].split()
    # Ticks since the machine was started, which no change of its clock moves. "Z" is a process
    # that ended and that its parent has not asked for.
    return None if state in ("Z", "X") else f"{int(values[18]):x}"


def _exists(pid: int) -> bool:
    """Whether there is a process of this number, of any user."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _age_s(place: Path, mark: str) -> float:
    """Seconds since `place` was renewed, by the clock of its file system; 0 where it has none."""
    probe = place.with_name(place.name.removesuffix(mark) + new_mark())
    try:
        probe.touch(exist_ok=False)
        now_s = probe.stat().st_mtime
        probe.unlink()
        return now_s - place.stat().st_mtime
    except OSError:
        return 0.0
