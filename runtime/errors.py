"""The errors that a user can do something about."""

from __future__ import annotations

__all__ = ["BadInput", "GateFailed", "NotFinite", "first_line"]


class BadInput(Exception):
    """What was given can't be used. One line: the file, the value and the way out. Exit code 2."""


class GateFailed(Exception):
    """What was made does not meet its bound. One line: by how much. Exit code 1."""


class NotFinite(GateFailed):
    """Scores that are NaN or infinite, and rank nothing."""


def first_line(error: BaseException) -> str:
    """What an error says, without its details."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
