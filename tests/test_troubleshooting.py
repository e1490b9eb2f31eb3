"""Every message that a user can meet stands in docs/reference/troubleshooting.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from xopt.runtime.scoring.st_arguments import ABSENT, REFUSED

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/reference/troubleshooting.md"
FOLDERS = ("cli", "optimize", "runtime", "face")
RAISED = {
    "BadInput",
    "GateFailed",
    "NotFinite",
    "ValueError",
    "TypeError",
    "AttributeError",
    "RuntimeError",
    "UsageError",
}
LOGGED = {"log.warning", "warnings.warn"}
HANDED_ON = {"_warn", "refuse"}  # they take a message after what it is about
# `variant=`: the command line shows an option in its place
ARGUMENT = re.compile(r"`[^`]*`")
# what a log message has in place of a value
FORMAT = re.compile(r"%[-+.\d]*[sdrgf]|%%")
VALUE = "\0"

# No user can cause these, or others catch them before a user sees them.
INTERNAL = {
    "torch.onnx.export gave nothing": "becomes the reason in 'cannot export this architecture'",
    "scores for": "holds Daft to one score a row",
    "has no attribute": "what Python says of any module or object",
    "several kinds": "a type within 'column … is of …'",
    "it has no format number": "becomes the reason in 'is damaged'",
    "it lacks": "becomes the reason in 'is damaged'",
    "it ends before row": "becomes the reason in 'cannot be read'",
    "stands twice": "becomes the reason in 'not JSON'",
}
# What is raised here was made elsewhere, where its message is collected.
PASSED_ON = {
    "cli/options.py": "`refuse` is given it",
    "optimize/steer.py": "`_why_none_passes` makes it",
    "runtime/bench/worker.py": "the bench's process gave it",
    "runtime/jobs/workers.py": "a worker gave it",
    "runtime/cascade/cascade.py": "`_warn` is given it",
    "runtime/frames/cascade.py": "`beyond` makes it",
    "runtime/jobs/request.py": "`beyond` makes it",
    "runtime/data/sources.py": "`_warn` is given it",
    "runtime/scoring/cross_encoder.py": "`ABSENT` says why",
    "runtime/scoring/variants.py": "`_overflow` makes it",
}


class Message(NamedTuple):
    """The fixed text of one message, with `VALUE` for what is put in."""

    where: str
    text: str

    @property
    def fixed_part(self) -> str:
        """Its longest run of text without a value."""
        pieces = (piece.strip(" :;,.()'\"|") for piece in self.text.split(VALUE))
        return max(pieces, key=len)


def text_of(node: ast.expr) -> str:
    """The fixed text of a string expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else VALUE
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return text_of(node.body) + VALUE + text_of(node.orelse)
    return VALUE


def normalised(text: str) -> str:
    """Text as the page and a message are compared by: plain, with single blanks."""
    return re.sub(r"\s+", " ", text)


def texts_of(node: ast.expr, function: ast.AST) -> Iterator[str]:
    """The texts that an expression may be: itself, or what its name was assigned."""
    if not isinstance(node, ast.Name):
        yield text_of(node)
        return
    for statement in ast.walk(function):
        if isinstance(statement, ast.Assign) and node.id in names_in(statement.targets):
            yield text_of(statement.value)


def names_in(targets: Iterable[ast.expr]) -> set[str]:
    return {target.id for target in targets if isinstance(target, ast.Name)}


def messages_in(file: Path) -> Iterator[Message]:
    """The messages of calls, and what functions whose results they hold return."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    name = file.relative_to(ROOT).as_posix()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    helpers: set[str] = set()
    for function in functions:
        for call in ast.walk(function):
            place = place_of_message(call)
            if place is None:
                continue
            message = call.args[place]
            helpers |= called_in(message)
            for text in texts_of(message, function):
                yield Message(f"{name}:{call.lineno}", plain(text))
    for function in functions:
        if function.name in helpers:
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None:
                    returned = Message(f"{name}:{node.lineno}", plain(text_of(node.value)))
                    if returned.fixed_part:
                        yield returned


def place_of_message(node: ast.AST) -> int | None:
    """Which argument of a call is a message; None where it gives none."""
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    if name.split(".")[-1] in HANDED_ON:
        return 1
    is_message = name.split(".")[-1] in RAISED or name in LOGGED
    return 0 if is_message and node.args else None


def called_in(message: ast.expr) -> set[str]:
    calls = [node.func for node in ast.walk(message) if isinstance(node, ast.Call)]
    return names_in(calls)


def plain(text: str) -> str:
    return normalised(ARGUMENT.sub(VALUE, FORMAT.sub(VALUE, text)))


def all_messages() -> list[Message]:
    found = set()
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            found.update(messages_in(file))
    return sorted(found)


def test_the_page_has_every_message() -> None:
    page = normalised(PAGE.read_text(encoding="utf-8").replace("\\|", "|"))
    lacking = []
    for message in all_messages():
        part = message.fixed_part
        if part not in INTERNAL and part not in page:
            lacking.append(f"{message.where}: {part}")
    assert not lacking, "\n".join(["not in docs/reference/troubleshooting.md:", *lacking])


def test_the_page_says_what_a_model_folder_lacks() -> None:
    page = normalised(PAGE.read_text(encoding="utf-8"))
    reasons = {*ABSENT.values(), *REFUSED.values()}
    lacking = {reason for reason in reasons if reason.replace("`", "") not in page}
    assert not lacking


def test_what_is_left_out_is_there() -> None:
    messages = all_messages()
    assert set(INTERNAL) <= {message.fixed_part for message in messages}
    opaque = {message.where.partition(":")[0] for message in messages if not message.fixed_part}
    assert opaque == set(PASSED_ON)
