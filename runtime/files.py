"""Files that appear whole or not at all, even where a process is killed; and their fingerprints."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil
from safetensors import SafetensorError

from xopt.runtime.errors import BadInput

__all__ = [
    "already_there",
    "check_writable",
    "keep_signals",
    "locked",
    "new_file",
    "new_folder",
    "scratch_beside",
    "sha256_of",
    "sweep",
    "write_text",
    "writing",
]

BLOCK_BYTES = 1 << 20
# Several machines may write to one folder, so temporary names hold the host and the process.
HOST = re.sub(r"[\W_]", "_", socket.gethostname())


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def keep_signals() -> Iterator[None]:
    """Let Ctrl-C and a termination end the block, even where a library swallows them.

    A handler raises an exception, which torch's exporter loses in callbacks or wraps in errors of
    its own. So the handler of a signal that came runs once more at the end of the block.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            first = signal.Signals(received[0])
            handlers[first](first, None)


@contextlib.contextmanager
def new_file(path: Path, swept: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path`, and rename it to `path` at the end.

    On an error nothing is left. What killed processes left there is removed first, unless `swept`
    says that this has been done.
    """
    if not swept:
        _sweep(path)
    with _temporary(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextlib.contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, and rename it to `path` at the end.

    On an error nothing is left. With `replace` an old folder goes when the new one is complete;
    where `path` is a link, the folder that it leads to. Raises BadInput where `path` exists, at
    the beginning or at the end, and `replace` is false.
    """
    if path.is_symlink():
        path = path.resolve()
    _sweep(path)
    if path.exists() and not replace:
        raise already_there(path)
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        with locked(path.parent):
            if path.exists() and not replace:
                raise already_there(path)
            old = _name_beside(path, "old")
            if path.exists():
                path.replace(old)
            temporary.replace(path)
        if old.exists():
            _remove(old)


@contextlib.contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, from which files can be moved there whole."""
    _sweep(path)
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary


def already_there(path: Path) -> BadInput:
    """Return the error to raise where `path` exists and is not to be replaced."""
    return BadInput(
        f"{path}: exists already; choose another folder with `out=`, "
        "or replace it with `force=True`"
    )


def check_writable(path: Path) -> None:
    """Raise BadInput where `path` cannot be written: a file, or a folder to write files in."""
    place = path if path.is_dir() else path.parent
    while not place.exists() and place != place.parent:
        place = place.parent
    temporary = _name_beside(place / path.name, "new")
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from error


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Let one process at a time, of all users and machines, into the blocks for a folder.

    Without `wait` it raises BlockingIOError where another process is in such a block. On Windows,
    which has no locks on folders, it does nothing.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)  # the folder itself: no lock file is left behind
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sweep(folder: Path, names: str) -> None:
    """Remove half-written files of killed processes, of any machine, by a pattern of `names`.

    Nobody else may be writing such files.
    """
    for leftover in folder.glob(f".{names}.new-*"):
        _remove(leftover)


def write_text(path: Path, text: str) -> None:
    with new_file(path) as temporary:
        # JSON may hold half a surrogate pair, which UTF-8 has no bytes for.
        temporary.write_text(text, encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _name_beside(path, "new")
        try:
            yield temporary
        finally:
            _remove(temporary)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise BadInput, with the reason, where the block fails to write at `path`.

    The reason is the operating system's: no space, no permission, no folder.
    """
    try:
        yield
    except FileNotFoundError:  # a file that is read: what is written gets its folders
        raise
    except OSError as error:
        if not error.strerror:
            raise
        raise _unwritable(path, error.strerror) from error
    except SafetensorError as error:
        reason = str(error).partition("I/O error: ")[2]
        if not reason:
            raise
        raise _unwritable(path, reason) from error


def _unwritable(path: Path, reason: str) -> BadInput:
    return BadInput(
        f"{path}: cannot be written ({reason}); free some space or choose another place"
    )


def _name_beside(path: Path, role: str) -> Path:
    return path.parent / f".{path.name}.{role}-{HOST}-{os.getpid()}"


def _sweep(path: Path) -> None:
    """Remove what killed processes of this machine left beside `path`.

    Where one was killed between moving the old folder away and the new one in, the old one is
    moved back.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*-{HOST}-*"):
        owner = leftover.name.rpartition("-")[2]
        if not owner.isdigit() or psutil.pid_exists(int(owner)):
            continue
        if ".old-" in leftover.name and not path.exists():
            leftover.replace(path)
        else:
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
