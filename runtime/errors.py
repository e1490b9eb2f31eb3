"""The errors that a user can do something about."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BadInput", "GateFailed", "NotFinite", "first_line", "unwritable"]


class BadInput(Exception):
    """An input that can't be used. One line names the file, the value and the way out.

    The command line prints it and exits with 2.
    """


class GateFailed(Exception):
    """A result that misses its bound. One line says by how much.

    The command line prints it and exits with 1.
    """


class NotFinite(GateFailed):
    """Scores that are NaN or infinite, and rank nothing."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type where it has none."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]


def unwritable(path: Path, error: OSError | str) -> BadInput:
    """Return the error to raise where `path` cannot be written, with the system's reason."""
    reason = error if isinstance(error, str) else error.strerror or first_line(error)
    return BadInput(
        f"{path}: cannot be written ({reason}); free some space or choose another place"
    )
