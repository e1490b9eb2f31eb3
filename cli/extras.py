"""What a command needs beside the packages that xopt always brings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["needs_extra"]


@contextmanager
def needs_extra(command: str, extra: str) -> Iterator[None]:
    """Turn a failed import into a line that names the extra to install."""
    from xopt.runtime.errors import BadInput

    try:
        yield
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{command}: lacks {str(error.name).partition('.')[0]}; it needs the extra {extra} "
            f"(pip install 'xopt-rerank[{extra}]')"
        ) from error
