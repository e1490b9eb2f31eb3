"""Docstrings of Python source files: real texts that lie on every machine that can run xopt."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Docstring", "read_docstrings"]

MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 4, 30
MIN_BODY_CHARS = 80
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Docstring:
    """One docstring: where it stands (file:line), its summary paragraph, and the paragraphs below
    it.
    """

    where: str
    summary: str
    body: str


def read_docstrings(root: Path, skip: frozenset[str] = frozenset()) -> Iterator[Docstring]:
    """Yield the docstrings with a summary and a body under `root`, files in sorted order.

    Files are parsed, never imported. Folders named in `skip` are left out. So are
    summaries and bodies that came before, summaries of fewer than 4 or more than 30 words, and
    bodies of fewer than 80 characters.
    """
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if skip.isdisjoint(parts[:-1]):
            for docstring in _parse(path, "/".join(parts)):
                if seen.isdisjoint((docstring.summary, docstring.body)):
                    seen.update((docstring.summary, docstring.body))
                    yield docstring


def _parse(path: Path, where: str) -> Iterator[Docstring]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # somebody else's invalid escapes are not our warnings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # templates and files for other Python versions are not source we can read
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if text is None:
            continue
        summary, _, body = inspect.cleandoc(text).partition("\n\n")
        summary, body = " ".join(summary.split()), body.strip()
        words = len(summary.split())
        if MIN_SUMMARY_WORDS <= words <= MAX_SUMMARY_WORDS and len(body) >= MIN_BODY_CHARS:
            yield Docstring(f"{where}:{getattr(node, 'lineno', 1)}", summary, body)
