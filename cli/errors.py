"""Messages of the library, in which Python arguments become command-line options."""

from __future__ import annotations

import logging
import re

import click

from xopt.cli.options import GATES

__all__ = ["OptionFormatter", "with_option_names"]

# the library writes arguments as Python does: `variant=`, `variant="onnx-int8"`, `force=True`
ARGUMENT = re.compile(r"`(?P<name>[a-z_]+)=(?P<value>[^`]*)`")
# and a gate by its measure, which Python callers give
GATE = re.compile(r"the gate on (?P<measure>[a-z0-9_]+)")
GATE_PARAMETERS = {measure: name for name, measure in GATES.items()}


def with_option_names(message: str, commands: list[click.Command]) -> str:
    """Name the arguments in a message as options: `force=True` becomes --force.

    Each is named as the first of the commands names it that has such a parameter.
    An argument that no command has stays as it is.
    """
    params: dict[str | None, click.Parameter] = {}
    for command in commands:
        for param in command.params:
            params.setdefault(param.name, param)

    def option_text(match: re.Match[str]) -> str:
        param = params.get(match["name"])
        if param is None:
            return match[0]
        if isinstance(param, click.Argument):
            return param.metavar or str(param.name).upper()
        option = max(param.opts, key=len)
        value = match["value"].strip("\"'")
        is_flag = isinstance(param, click.Option) and param.is_flag
        return option if is_flag or not value else f"{option} {value}"

    def gate_text(match: re.Match[str]) -> str:
        name = GATE_PARAMETERS.get(match["measure"])
        return match[0] if name is None else f"--{name.replace('_', '-')}"

    return GATE.sub(gate_text, ARGUMENT.sub(option_text, message))


class OptionFormatter(logging.Formatter):
    """Formats what the library logs, with arguments named as options."""

    def __init__(self, commands: list[click.Command]) -> None:
        super().__init__()
        self.commands = commands

    def format(self, record: logging.LogRecord) -> str:
        return self.with_options(super().format(record))

    def with_options(self, text: str) -> str:
        return with_option_names(text, self.commands)
