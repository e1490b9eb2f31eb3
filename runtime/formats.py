"""What is kept in JSON, and read by earlier and later versions: manifests, jobs and their notes.

Keys are read by name. A later version may add a key whose default is empty (None, False, 0, "", []
or {}) and means what was done before. So an older file, which lacks the key, says the same, and an
older version can leave an empty one out. All else that changes what is kept, a new meaning of a
key too, needs another format number. Defaults never change: files leave keys to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["OtherVersion", "check_format", "read"]

T = TypeVar("T", bound="DataclassInstance")


class OtherVersion(ValueError):
    """What another version of xopt wrote; its message goes on from "written by"."""


def check_format(values: dict[str, Any], known: int) -> None:
    """Take the format's number out of `values`.

    Raises OtherVersion if it is not the known one, and ValueError if there is none.
    """
    number = values.pop("format", None)
    if type(number) is not int:
        raise ValueError("it has no format number")
    if number != known:
        which = "a newer" if number > known else "an earlier"
        raise OtherVersion(f"{which} xopt (format {number})")


def read(kind: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass of what was kept of one, by name.

    Raises OtherVersion for a key that this version does not know, unless it is empty. Raises
    ValueError for one that is missing and has no default.
    """
    known = {field.name: field for field in fields(kind)}
    new = [name for name, value in values.items() if name not in known and value]
    if new:
        raise OtherVersion(f"a newer xopt (which has {', '.join(map(repr, new))})")
    for name, field in known.items():
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and name not in values:
            raise ValueError(f"it lacks {name!r}")
    return kind(**{name: values[name] for name in known if name in values})
