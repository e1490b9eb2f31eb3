"""Files that appear whole or not at all, whatever ends the work; and their fingerprints."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
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
    "heard",
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
# a folder may be shared between machines
HOST = "".join(c if c.isalnum() else "_" for c in socket.gethostname())


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Let Ctrl-C and a termination end what is within, even where a library loses, or wraps, what
    their handlers raise.

    torch's exporter does, in callbacks and around its own errors.
    """
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in kept.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # signals are the main thread's
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            handlers[signal.Signals(came[0])](came[0], None)


@contextlib.contextmanager
def new_file(path: Path, swept: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` at the end, or leave nothing on
    an error.

    What a killed process left there is removed first, unless that has been done: `swept`.
    """
    if not swept:
        _sweep(path)
    with _temporary(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextlib.contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` at the end, or leave
    nothing.

    Raises BadInput where `path` is there already, or at the end, and `replace` is false. With
    `replace` the old folder is removed only when the new one is complete; of a link that is what
    it leads to.
    """
    path = path.resolve() if path.is_symlink() else path
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
    """Yield an empty temporary folder beside `path`, which goes at the end: what is made there
    can be moved whole.
    """
    _sweep(path)
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary


def already_there(path: Path) -> BadInput:
    """What to raise where `path` is there and is not to be replaced."""
    return BadInput(
        f"{path}: exists already; choose another folder with -o, or replace it with --force"
    )


def check_writable(path: Path) -> None:
    """Raises BadInput where `path`, a file or a file in that folder, cannot be written, before
    work is done for it.
    """
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
    """Be the only process that is in such a block for this folder; others, of other users and
    machines too, wait.

    Or, without `wait`, they raise BlockingIOError.
    """
    if sys.platform == "win32":  # it has no locks on folders
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)  # the folder itself: no file is left behind
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def sweep(folder: Path, names: str) -> None:
    """Remove what killed processes, of any machine, left half-written of files that nobody else
    writes, by pattern.
    """
    for leftover in folder.glob(f".{names}.new-*"):
        _remove(leftover)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with new_file(path) as temporary:
        # half a surrogate pair is no text
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
    """Raises BadInput with the reason where the block fails to write at `path`: no space, no
    permission, no folder.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, FileNotFoundError):  # something that is read
            raise
        reason = error.strerror if isinstance(error, OSError) else _io_error(str(error))
        if not reason:
            raise
        raise _unwritable(path, reason) from error


def _unwritable(path: Path, reason: str) -> BadInput:
    return BadInput(
        f"{path}: cannot be written ({reason}); free some space or choose another place"
    )


def _io_error(message: str) -> str:
    """What the operating system said, if it was the cause of a SafetensorError."""
    return message.partition("I/O error: ")[2]


def _name_beside(path: Path, role: str) -> Path:
    return path.parent / f".{path.name}.{role}-{HOST}-{os.getpid()}"


def _sweep(path: Path) -> None:
    """Remove what a killed process of this machine left beside `path`; put back an old folder
    without successor.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*-{HOST}-*"):
        owner = leftover.name.rpartition("-")[2]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            if ".old-" in leftover.name and not path.exists():
                leftover.replace(path)
            else:
                _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
