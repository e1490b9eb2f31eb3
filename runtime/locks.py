"""Locks on folders that processes of all machines see: files that only one of them can make.

The locks of an operating system do not do it. On NFS and Lustre a folder's lock holds on one
machine only, and some file systems have none.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xopt.runtime.errors import BadInput, unwritable
from xopt.runtime.owners import (
    HOST,
    flocked,
    is_left_behind,
    lives,
    new_mark,
    process_of,
    renewed,
)

__all__ = ["LOCK", "Lock", "locked"]

log = logging.getLogger(__name__)

LOCK = ".xopt.lock"
STALE_S = 60.0  # a lock of another machine that nobody renews for so long is taken over
PATIENT_S = 6.0  # three renewals: after that it is told what is waited for
SETTLE_S = 1.0  # several may take over one lock; after that each sees who did it last
LOOK_S = 0.05

GONE = (errno.ENOENT, errno.ESTALE)  # the latter: removed as it was read

Seen = tuple[str, int]  # what a lock says, and when it was renewed


@dataclass(frozen=True)
class Lock:
    """A lock's file, and what it says while the lock is its owner's."""

    file: Path
    text: str

    def is_own(self) -> bool:
        """Tell whether the lock is its owner's still."""
        try:
            return self.file.read_text(encoding="utf-8", errors="replace") == self.text
        except OSError as error:
            if error.errno in GONE:
                return False
            raise unwritable(self.file.parent, error) from error

    def check(self) -> None:
        """Raise BadInput where another process took the lock over: it works here now."""
        if not self.is_own():
            raise BadInput(
                f"{self.file.parent}: another process took over here while this one stood still, "
                "or the folder was replaced; what is written stays: give the same command again"
            )

    def renew(self) -> None:
        """Show that the owner lives."""
        with contextlib.suppress(BadInput):  # it cannot be read now
            if self.is_own():
                os.utime(self.file)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[Lock]:
    """Let one process at a time, of all users and machines, into the blocks for a folder.

    A dead process's lock is taken over: of this machine at once, of another one when it has not
    been renewed for `STALE_S`. The times on it are compared with each other only, so clocks may
    differ. A process that stood still for long may lose its lock: it has to `check` it before it
    writes. Raises BadInput where no lock can be made, and without `wait` BlockingIOError, which
    names the process, where another one is in such a block.
    """
    lock = Lock(folder / LOCK, f"{new_mark()} {HOST}")
    others = _Others(lock.file)
    stale: Seen | None = None
    while True:
        with _claimed(lock, stale) as own:
            if own:
                yield lock
                return
        stale = None
        seen = _look(lock.file)
        if seen is None:
            continue
        alive = others.alive(seen)
        if alive is False:
            stale = seen
        elif alive and not wait:
            raise BlockingIOError(_shown(seen))
        else:
            time.sleep(random.uniform(LOOK_S / 5, LOOK_S))


class _Others:
    """What can be seen of the other owners of a lock."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seen: Seen | None = None
        self._since_s = 0.0
        self._told = False

    def alive(self, seen: Seen) -> bool | None:
        """Tell whether the owner lives, None where that is not known yet."""
        alive = lives(seen[0].partition(" ")[0], self.file)
        return self._renews(seen) if alive is None else alive

    def _renews(self, seen: Seen) -> bool | None:
        now_s = time.monotonic()
        if seen != self._seen:
            is_first = self._seen is None
            self._seen = seen
            self._since_s = now_s
            return None if is_first else True
        unchanged_s = now_s - self._since_s
        if unchanged_s > PATIENT_S and not self._told:
            log.warning(
                "%s: locked by %s, which shows no sign of life; it is taken over in %.0f s",
                self.file.parent,
                _shown(seen),
                STALE_S - unchanged_s,
            )
            self._told = True
        return False if unchanged_s >= STALE_S else None


@contextlib.contextmanager
def _claimed(lock: Lock, stale: Seen | None) -> Iterator[bool]:
    """Try to make the lock, or to replace a `stale` one; yield whether it is ours in the block."""
    claim = lock.file if stale is None else _beside(lock)
    if not _made(claim):
        yield False
        return
    with flocked(claim):  # before it says whose it is: nobody finds a living process's without
        try:
            _write(claim, lock.text)
            if stale is not None and _look(lock.file) == stale:
                _replace(claim, lock.file)
                time.sleep(SETTLE_S)
            with renewed(lock.renew):
                yield lock.is_own()
        finally:
            for file in (claim, lock.file):
                if Lock(file, lock.text).is_own():
                    file.unlink(missing_ok=True)


def _beside(lock: Lock) -> Path:
    """A name beside a lock's for the one that takes its place; those of the dead are removed."""
    prefix = f"{LOCK}.new-"
    for file in lock.file.parent.glob(f"{prefix}*"):
        if is_left_behind(file, file.name.removeprefix(prefix)):
            with contextlib.suppress(OSError):  # somebody else's
                file.unlink()
    return lock.file.with_name(prefix + lock.text.partition(" ")[0])


def _made(file: Path) -> bool:
    """Make a file, and tell whether it was not there before."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError as error:
        raise unwritable(file.parent, error) from error
    return True


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        file.unlink(missing_ok=True)
        raise unwritable(file.parent, error) from error


def _replace(claim: Path, file: Path) -> None:
    try:
        claim.replace(file)
    except OSError as error:
        raise unwritable(file.parent, error) from error


def _look(file: Path) -> Seen | None:
    """Read a lock; None where there is none. Opening it asks a server for its time anew."""
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(), os.fstat(stream.fileno()).st_mtime_ns
    except OSError as error:
        if error.errno in GONE:
            return None
        raise unwritable(file.parent, error) from error


def _shown(seen: Seen) -> str:
    mark, _, host = seen[0].partition(" ")
    return f"process {process_of(mark)} on {host}" if host else "a process that is beginning"
