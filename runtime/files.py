"""Files that appear whole or not at all, and their fingerprints."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
from safetensors import SafetensorError

from xopt.runtime.errors import BadInput

__all__ = ["new_file", "new_folder", "sha256_of", "write_text"]

BLOCK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` at the end, or leave nothing on an error."""
    _sweep(path)
    with _temporary(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextlib.contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; rename it to `path` at the end, or leave nothing.

    Raises BadInput where `path` is there already and `replace` is false. With `replace` the old
    folder is removed only when the new one is complete.
    """
    _sweep(path)
    if path.exists() and not replace:
        raise BadInput(f"{path}: exists already; choose another folder with -o, or replace it with --force")
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary
        if path.exists():
            old = _name_beside(path, "old")
            path.replace(old)
            temporary.replace(path)
            _remove(old)
        else:
            temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _name_beside(path, "new")
        try:
            yield temporary
        finally:
            _remove(temporary)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else _io_error(str(error))
        if not reason:
            raise
        raise BadInput(f"{path}: cannot be written ({reason}); free some space or choose another place") from error


def _io_error(message: str) -> str:
    """What the operating system said, if it was the cause of a SafetensorError."""
    return message.partition("I/O error: ")[2]


def _name_beside(path: Path, role: str) -> Path:
    return path.parent / f".{path.name}.{role}-{os.getpid()}"


def _sweep(path: Path) -> None:
    """Remove what a killed process left beside `path`; put back an old folder that lost its successor."""
    for leftover in path.parent.glob(f".{path.name}.*-*"):
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
