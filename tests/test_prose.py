"""The prose of pages and docstrings: short sentences, short lines, links that lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
MOST_WORDS = 25  # of a sentence
MOST_CHARACTERS = 100  # of a line
MARKDOWN = MarkdownIt("commonmark").enable("table")
BESIDE_DOCS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
IN_DOCS = ("index.md", "tutorial.md", "performance.md")
FOLDERS = ("guides", "reference", "explanations", "notes")
PAGES = [
    *(ROOT / name for name in BESIDE_DOCS),
    *(page for name in IN_DOCS for page in (ROOT / "docs").glob(name)),
    *(page for name in FOLDERS for page in sorted((ROOT / "docs" / name).rglob("*.md"))),
]
TOPS = ("face", "cli", "optimize", "runtime")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|vs|etc|al|cf)\.")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
LINK_TARGET = re.compile(r"\]\([^)]*\)")


def texts(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield each paragraph, list item and table cell with its line; inline code is one word."""
    line = 1
    for token in MARKDOWN.parse(markdown):
        if token.map:
            line = token.map[0] + 1
        if token.type == "inline":
            yield line, "".join(text_of(child) for child in token.children or ())


def text_of(token: Token) -> str:
    if token.type == "code_inline":
        return "CODE"
    if token.type in ("softbreak", "hardbreak"):
        return " "
    return token.content if token.type in ("text", "image") else ""


def long_sentences(markdown: str, where: str, first_line: int = 0) -> list[str]:
    found = []
    for line, text in texts(markdown):
        for sentence in SENTENCE_END.split(ABBREVIATION.sub(r"\1", text)):
            words = sum(any(map(str.isalnum, word)) for word in sentence.split())
            if words > MOST_WORDS:
                found.append(f"{where}:{first_line + line}: {words} words: {sentence}")
    return found


def long_lines(markdown: str, where: str) -> list[str]:
    """Return the lines of prose that are too long, without the addresses of their links."""
    excepted: set[int] = set()
    for token in MARKDOWN.parse(markdown):
        if token.map and token.type in ("fence", "table_open", "heading_open", "html_block"):
            excepted |= set(range(*token.map))
    found = []
    for number, line in enumerate(markdown.splitlines()):
        length = len(LINK_TARGET.sub("]", line))
        if length > MOST_CHARACTERS and number not in excepted:
            found.append(f"{where}:{number + 1}: {length} characters: {line}")
    return found


def targets(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield what links and images lead to, with the line of the paragraph."""
    line = 1
    for token in MARKDOWN.parse(markdown):
        if token.map:
            line = token.map[0] + 1
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield line, str(target)


def lost_links(page: Path) -> list[str]:
    found = []
    for line, target in targets(page.read_text(encoding="utf-8")):
        path = target.partition("#")[0]
        is_elsewhere = ":" in path
        if path and not is_elsewhere and not (page.parent / path).exists():
            found.append(f"{page.relative_to(ROOT)}:{line}: no {target}")
    return found


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each docstring of a module, with the line before its first."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, DOCUMENTED):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield node.body[0].lineno - 1, cleandoc(docstring)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_reads_easily(page: Path) -> None:
    markdown = page.read_text(encoding="utf-8")
    where = str(page.relative_to(ROOT))
    problems = long_sentences(markdown, where) + long_lines(markdown, where) + lost_links(page)
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("top", TOPS)
def test_docstrings_read_easily(top: str) -> None:
    problems = []
    for path in sorted((ROOT / top).rglob("*.py")):
        for line, docstring in docstrings(path):
            problems += long_sentences(docstring, str(path.relative_to(ROOT)), line)
    assert not problems, "\n" + "\n".join(problems)


def test_what_does_not_read_easily_is_found() -> None:
    long = " ".join(["word"] * 26)
    short = " ".join(["word"] * 20)
    parts = (f"# {short} {short}", f"{long}.", f"- {short}: `a b c d e f g`. {short}")
    page = "\n\n".join((*parts, f"| a |\n|-|\n| {long} |"))
    found = [each.partition(" words")[0] for each in long_sentences(page, "page.md")]
    assert found == ["page.md:1: 40", "page.md:3: 26", "page.md:9: 26"]
    found = [each.partition(" characters")[0] for each in long_lines(page, "page.md")]
    assert found == ["page.md:3: 130", "page.md:5: 219"]
