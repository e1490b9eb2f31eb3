"""The library's messages, in the words of the command line."""

from __future__ import annotations

import logging
import re

import click

__all__ = ["OptionFormatter", "in_options"]

# The library writes an argument as Python does: `variant=`, `variant="onnx-int8"` or `force=True`.
ARGUMENT = re.compile(r"`(?P<name>[a-z_]+)=(?P<value>[^`]*)`")


def in_options(message: str, commands: list[click.Command]) -> str:
    """Name the arguments in a message as options: `force=True` becomes --force.

    The first of the commands that has a parameter of that name says how it is called there.
    What none of them has stays as it is.
    """
    params = {}
    for command in reversed(commands):
        params.update({param.name: param for param in command.params})

    def option(found: re.Match[str]) -> str:
        param = params.get(found["name"])
        if param is None:
            return found[0]
        if isinstance(param, click.Argument):
            return param.metavar or str(param.name).upper()
        name = max(param.opts, key=len)
        value = found["value"].strip("\"'")
        is_flag = isinstance(param, click.Option) and param.is_flag
        return name if is_flag or not value else f"{name} {value}"

    return ARGUMENT.sub(option, message)


class OptionFormatter(logging.Formatter):
    """Formats what the library logs, with arguments named as options."""

    def __init__(self, commands: list[click.Command]) -> None:
        super().__init__()
        self.commands = commands

    def format(self, record: logging.LogRecord) -> str:
        return in_options(super().format(record), self.commands)
