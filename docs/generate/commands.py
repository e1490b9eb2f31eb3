"""Write docs/reference/commands.md from the help of the commands.

    python docs/generate/commands.py

tests/test_cli.py fails when the page and the help differ.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import click

from xopt.cli.main import cli
from xopt.cli.options import DATA_OPTIONS, GATES

PAGE = Path(__file__).parents[1] / "reference" / "commands.md"
WIDTH = 100
INTRODUCTION = """\
# Commands

Every command of `xopt`, with its options and their defaults. `xopt COMMAND --help` prints the same.

```bash
xopt optimize demo
```
"""
# what several commands share: a heading, an introduction, and the parameters
SHARED = {
    "Data options": (
        "They say what is scored. [Data](data.md) has the formats, and what is refused.",
        DATA_OPTIONS,
    ),
    "Gates": (
        "They say what a variant has to hold to pass. [Agreement](../explanations/agreement.md) "
        "explains the measures.",
        tuple(GATES),
    ),
}
ENDING = re.compile(r"((?:  \[[^\]]*\])+)$")  # what click puts behind a help text


def page() -> str:
    """Return the page as Markdown."""
    group = click.Context(cli, info_name="xopt", **cli.context_settings)
    contexts = [
        click.Context(command, info_name=name, parent=group)
        for name, command in cli.commands.items()
    ]
    parts = [INTRODUCTION, _overview(contexts), _section(cli, group)]
    parts += [_section(context.command, context) for context in contexts]
    parts += [_shared_section(name, contexts[0]) for name in SHARED]
    return "\n".join(parts)


def _overview(contexts: Sequence[click.Context]) -> str:
    """Make a table of all commands, with the first sentence of their help."""
    lines = ["| command | what it does |", "|---|---|"]
    for context in contexts:
        path = context.command_path
        anchor = path.replace(" ", "-")
        does = context.command.get_short_help_str(WIDTH)
        lines.append(f"| [`{path}`](#{anchor}) | {does} |")
    return "\n".join(lines) + "\n"


def _section(command: click.Command, context: click.Context) -> str:
    """Describe a command: synopsis, help, examples, and its own options."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    lines = [f"## {context.command_path}", ""]
    usage = " ".join(command.collect_usage_pieces(context))
    lines += ["```text", f"{context.command_path} {usage}", "```", ""]
    lines += _paragraphs(command.help or "")
    lines += _examples(command.epilog or "")
    shared = _shared_with(options)
    names = {name for heading in shared for name in SHARED[heading][1]}
    lines += [_item(option, context) for option in options if option.name not in names]
    links = [f"[{name.lower()}](#{name.lower().replace(' ', '-')})" for name in shared]
    if links:
        lines += ["", f"It also takes the {' and the '.join(links)}."]
    return "\n".join(lines) + "\n"


def _shared_with(options: Sequence[click.Option]) -> list[str]:
    """Return the headings of the shared options that a command has all of."""
    names = {option.name for option in options}
    return [heading for heading, (_, shared) in SHARED.items() if names.issuperset(shared)]


def _shared_section(heading: str, context: click.Context) -> str:
    """Describe options that several commands share; `context` is of one that has them."""
    introduction, names = SHARED[heading]
    lines = [f"## {heading}", "", textwrap.fill(introduction, WIDTH), ""]
    options = {option.name: option for option in context.command.params}
    lines += [_item(options[name], context) for name in names]
    return "\n".join(lines) + "\n"


def _paragraphs(text: str) -> list[str]:
    """Wrap each paragraph of a help text, with an empty line behind it."""
    lines = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines += [_wrapped(_with_code(paragraph)), ""]
    return lines


def _examples(epilog: str) -> list[str]:
    """Put the lines below `Examples:` into a block of code."""
    if not epilog:
        return []
    lines = [line.strip() for line in epilog.strip("\b\n").splitlines()]
    return ["```bash", *lines[1:], "```", ""]


def _item(option: click.Parameter, context: click.Context) -> str:
    """Describe an option as an item of a list: names, help, default and range."""
    names, text = option.get_help_record(context) or ("", "")
    ending = ENDING.search(text)
    facts: list[str] = []
    if ending:
        text = text[: ending.start()]
        facts = re.split(r"\]  \[|; ", ending.group().strip("[] "))
    names = names.replace(", ", "`, `")
    sentences = [f"`{names}`: {_with_code(text)}"]
    for fact in facts:
        if fact.startswith("default: "):
            default = fact.removeprefix("default: ")
            is_value = " " not in default
            sentences.append(f"Default: {f'`{default}`' if is_value else _with_code(default)}.")
        elif fact == "required":
            sentences.append("Required.")
        elif fact != "x>=1":
            sentences.append(f"Range: `{fact}`.")
    return _wrapped(" ".join(sentences), first="- ", others="  ")


def _with_code(text: str) -> str:
    """Mark options as code, outside of what is code already."""
    pieces = re.split(r"(`[^`]*`)", text)
    marked = [re.sub(r"(?<![\w-])(--[a-z][a-z0-9-]*)", r"`\1`", piece) for piece in pieces[::2]]
    pieces[::2] = marked
    return "".join(pieces)


def _wrapped(text: str, first: str = "", others: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
