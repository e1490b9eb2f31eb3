"""Files that appear whole or not at all, even where a process is killed; and their fingerprints."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from safetensors import SafetensorError

from xopt.runtime.errors import BadInput, unwritable
from xopt.runtime.owners import in_progress, is_left_behind, new_mark

__all__ = [
    "already_there",
    "check_writable",
    "keep_signals",
    "new_file",
    "new_folder",
    "scratch_beside",
    "sha256_of",
    "sha256_of_stream",
    "sweep",
    "write_text",
    "writing",
]

BLOCK_BYTES = 1 << 20
# What a rename says where another process was faster to put something there.
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return sha256_of_stream(stream)


def sha256_of_stream(stream: IO[bytes]) -> str:
    """Return the sha256 of what is left of a stream, which is read in blocks."""
    digest = hashlib.sha256()
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
    with _temporary(path, _touch) as temporary:
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
    with _temporary(path, Path.mkdir) as temporary:
        yield temporary
        while not _moved(temporary, path, replace):
            pass


def _moved(temporary: Path, path: Path, replace: bool) -> bool:
    """Try to rename a folder to `path`, and tell whether nobody else was faster."""
    old = _name_beside(path, "old")
    if path.exists() or path.is_symlink():
        if not replace:
            raise already_there(path)
        with contextlib.suppress(OSError):  # it is somebody else's, or gone
            os.utime(path)  # from now on it is in progress
        with contextlib.suppress(FileNotFoundError):
            path.replace(old)
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        return False
    finally:
        if path.exists():
            _remove(old)
        elif old.exists():
            old.replace(path)
    return True


@contextlib.contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, from which files can be moved there whole."""
    _sweep(path)
    with _temporary(path, Path.mkdir) as temporary:
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
    tried = place / path.name
    _sweep(tried)
    temporary = _name_beside(tried, "new")
    try:
        temporary.touch(exist_ok=False)
        os.utime(temporary)  # as a lock is renewed
        temporary.unlink()
    except OSError as error:
        raise unwritable(path, error) from error


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
def _temporary(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make something beside `path`, and remove it at the end if it is there still."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _name_beside(path, "new")
        make(temporary)
        try:
            with in_progress(temporary):
                yield temporary
        except FileNotFoundError as error:
            if temporary.exists():  # it is another file, that is read
                raise
            raise BadInput(
                f"{path}: another process removed what was being written, while this one stood "
                "still; give the same command again"
            ) from error
        finally:
            _remove(temporary)


def _touch(path: Path) -> None:
    path.touch(exist_ok=False)


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
        raise unwritable(path, error) from error
    except SafetensorError as error:
        reason = str(error).partition("I/O error: ")[2]
        if not reason:
            raise
        raise unwritable(path, reason) from error


def _name_beside(path: Path, role: str) -> Path:
    return path.parent / f".{path.name}.{role}-{new_mark()}"


def _sweep(path: Path) -> None:
    """Remove what dead processes left beside `path`.

    Where one was killed between moving the old folder away and the new one in, the old one is
    moved back.
    """
    prefix = f".{path.name}."
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*-*"):
        role, _, mark = leftover.name.removeprefix(prefix).partition("-")
        if role not in ("new", "old") or not is_left_behind(leftover, mark):
            continue
        with contextlib.suppress(OSError):  # somebody else's, or another process removes it too
            if role == "old" and not path.exists():
                leftover.replace(path)
            else:
                _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
