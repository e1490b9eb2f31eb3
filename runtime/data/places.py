"""Where files lie: on this machine, or on a store that Arrow or fsspec reaches."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from xopt.runtime.errors import BadInput, first_line

__all__ = ["Place", "located", "reached", "shown"]

# Secrets of an address: a user with a password, and a signature behind the path. A question mark
# that no `key=value` follows is a wildcard, but on HTTP.
USER = re.compile(r"(?<=://)[^/@]*@")
AFTER_PATH = re.compile(r"\?[^/?]*=.*$|#.*$")
AFTER_HTTP_PATH = re.compile(r"[?#].*$")


@dataclass(frozen=True)
class Place:
    """A path on this machine, or on the store that an address leads to.

    The path is as the store lists it, and goes through no address again: names may hold `%`.
    """

    path: str
    store: str = ""

    @property
    def is_local(self) -> bool:
        return not self.store

    @property
    def system(self) -> fs.FileSystem:
        return _reached(self.store)[0] if self.store else fs.LocalFileSystem()

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file's bytes from its beginning."""
        if self.is_local:
            with Path(self.path).open("rb") as file:
                yield file
        else:
            with reached(self), self.system.open_input_stream(self.path, compression=None) as raw:
                yield io.BufferedReader(raw)


def located(name: str) -> Place:
    """Find the place of a path or an address. Raises BadInput where no store is reached by it."""
    if "://" not in name:
        return Place(str(Path(name).resolve()))
    system, path = _reached(name)
    return Place(path) if isinstance(system, fs.LocalFileSystem) else Place(path, name)


def shown(name: str) -> str:
    """Take the secrets from an address (user, query and fragment): messages show none."""
    if "://" not in name:
        return name
    after = AFTER_HTTP_PATH if name.startswith("http") else AFTER_PATH
    return after.sub("", USER.sub("", name))


@contextmanager
def reached(place: Place) -> Iterator[None]:
    """Raises BadInput, without secrets, for whatever a store raises within the block."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # each store has its own
        if place.is_local:
            raise
        reason = first_line(error).replace(place.path, shown(place.path))
        reason = reason.replace(place.store, shown(place.store))
        raise BadInput(f"{shown(place.store)}: cannot be read ({reason})") from None


@functools.cache
def _reached(address: str) -> tuple[fs.FileSystem, str]:
    """The store of an address, and the path there.

    Arrow itself reaches s3, gs, abfs and hdfs; fsspec reaches https, hf and others.
    """
    try:
        system, path = fs.FileSystem.from_uri(address.replace(" ", "%20"))
        return system, path
    except (pa.ArrowException, OSError, ValueError) as error:
        why = first_line(error)
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path
    except ImportError as error:  # it lacks a package for a store, which Arrow may well know
        if why.startswith("Unrecognized"):
            why = first_line(error)
    except (ValueError, OSError) as error:
        why = first_line(error)
    raise BadInput(
        f"{shown(address)}: cannot be reached ({why}); check the address, and install fsspec's "
        "package for its store"
    )
