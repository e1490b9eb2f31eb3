"""The `xopt` command."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shutil
import signal
import sys
from types import FrameType
from typing import Any

import click

from xopt.cli.commands.bench import bench
from xopt.cli.commands.card import card
from xopt.cli.commands.cascade import cascade
from xopt.cli.commands.export import export
from xopt.cli.commands.optimize import optimize
from xopt.cli.commands.quantize import quantize
from xopt.cli.commands.report import report
from xopt.cli.commands.rerank import rerank
from xopt.cli.commands.serve import serve
from xopt.cli.commands.shrink import shrink
from xopt.cli.commands.tune import tune
from xopt.cli.commands.validate import validate
from xopt.cli.errors import OptionFormatter, with_option_names
from xopt.cli.progress import Bars, BarsHandler, listener_on
from xopt.runtime.errors import BadInput, GateFailed
from xopt.runtime.progress import listening

__all__ = ["all_commands", "cli", "main"]

COMMANDS = (
    optimize,
    export,
    quantize,
    tune,
    validate,
    bench,
    cascade,
    shrink,
    rerank,
    serve,
    report,
    card,
)
# a place that cannot be written; other errors of the operating system keep their traceback
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


class _Group(click.Group):
    """Turns the errors that a user can do something about into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (BadInput, GateFailed) as error:
            message = " ".join(str(error).split())
            message = with_option_names(message, all_commands(first=ctx.invoked_subcommand))
            click.echo(f"Error: {message}", err=True)
            raise SystemExit(2 if isinstance(error, BadInput) else 1) from error
        except KeyboardInterrupt:
            click.echo("Interrupted: nothing half-written was left.", err=True)
            raise SystemExit(128 + signal.SIGINT) from None
        except OSError as error:
            if not _is_unwritable(error):
                raise
            place = f"{error.filename}: " if error.filename else ""
            reason = error.strerror or str(error)[:300]
            click.echo(f"Error: {place}{reason}; free some space or choose another place", err=True)
            raise SystemExit(2) from error


def _is_unwritable(error: OSError) -> bool:
    if isinstance(error, shutil.Error):  # it collects the errors of a copy, and has no number
        return True
    return error.errno in UNWRITABLE or "temporary directory" in str(error)


@click.group(
    cls=_Group,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
@click.version_option(package_name="xopt-rerank", prog_name="xopt")
@click.option("-q", "--quiet", is_flag=True, help="Print no progress on standard error.")
@click.pass_context
def cli(context: click.Context, quiet: bool) -> None:
    """Make a CrossEncoder several times faster, and prove that it still ranks the same.

    `xopt optimize MODEL` runs every step. The other commands run one step each, on the model
    folder DIR that the step before left on disk. MODEL is a hub id, a folder, or `demo`.

    Each command prints a table to standard output, and its progress to standard error. `serve`
    prints no table.

    Exit codes: 0 done, 1 a gate failed, 2 bad input, 3 a verdict is undecided.
    """
    logger = logging.getLogger("xopt")
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if not quiet:
        listener = listener_on(sys.stderr)
        context.with_resource(listening(listener))
        if isinstance(listener, Bars):
            handler = BarsHandler(listener.console)
    handler.setFormatter(OptionFormatter(all_commands(first=context.invoked_subcommand)))
    logger.handlers = [handler]
    logger.propagate = False  # some libraries give the root logger a handler of its own
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


for command in COMMANDS:
    cli.add_command(command)


def all_commands(first: str | None) -> list[click.Command]:
    """Return every command, the one of this name first."""
    return sorted(cli.commands.values(), key=lambda command: command.name != first)


def main() -> None:
    """Run the command line. A termination request cleans up as Ctrl-C does."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows lacks SIGHUP
        # nohup has SIGHUP ignored
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)
    _make_streams_safe()
    try:
        cli()
    except SystemExit as end:
        if "daft" not in sys.modules:
            raise
        # Daft may crash as Python ends, if it had worker processes. By now all is written, and
        # the exit code counts.
        _exit_at_once(end.code)


def _exit_at_once(code: object) -> None:
    """End the process without Python's own clean-up, but close what has to be closed."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe: nobody reads it
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _make_streams_safe() -> None:
    """Let no print fail for its encoding or a closed stream: a result is worth more."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 # open to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _terminate(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
