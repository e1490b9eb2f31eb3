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

__all__ = ["Place", "located", "shown"]

# What follows the path of an address: a signature there is a secret. A question mark that no
# `key=value` follows is a wildcard.
AFTER_PATH = re.compile(r"\?[^/?]*=.*$|#.*$")


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
            with self.system.open_input_stream(self.path, compression=None) as stream:
                yield io.BufferedReader(stream)


def located(name: str) -> Place:
    """Find the place of a path or an address. Raises BadInput where no store is reached by it."""
    if "://" not in name:
        return Place(str(Path(name).resolve()))
    system, path = _reached(name)
    return Place(path) if isinstance(system, fs.LocalFileSystem) else Place(path, name)


def shown(name: str) -> str:
    """Take the query and the fragment from an address: messages show neither."""
    return AFTER_PATH.sub("", name) if "://" in name else name


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
    except ImportError:  # fsspec lacks a package for a store that Arrow may well know
        pass
    except (ValueError, OSError) as error:
        why = first_line(error)
    raise BadInput(f"{shown(address)}: cannot be reached ({why})")
