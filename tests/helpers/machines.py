"""Processes that are on other machines, as far as a lock can tell, or in containers."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xopt.runtime.owners import new_mark

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTAINER = ("unshare", "-fp", "--kill-child", "--mount-proc")
FLOCKS = ("works", "nothing", "38", "37", "9")  # or the number of the error that it raises
MACHINE = """
import fcntl, os, socket, sys, time
def flock(*_):
    if {flock!r} != "nothing":
        raise OSError(int({flock!r}), os.strerror(int({flock!r})))
if {flock!r} != "works":
    fcntl.flock = flock
socket.gethostname = lambda: {host!r}
from pathlib import Path
from xopt.runtime import locks, owners
owners.RENEW_S = 0.1
here = Path(sys.argv[1])
"""


def on_machine(
    host: str, script: str, *arguments: object, flock: str = "nothing", within: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Begin a script on the machine of this name; `here` in it is the first argument."""
    code = MACHINE.format(flock=flock, host=host) + script
    command = [*within, sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def begun(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Wait for the script's first line, and kill it at the end."""
    assert process.stdout is not None
    assert process.stdout.readline(), process.communicate()[1]
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def mark_of(**fields: str) -> str:
    """A mark of this process, but for `machine`, `namespace`, `pid` or `start`."""
    names = ("machine", "namespace", "pid", "start", "token")
    values = dict(zip(names, new_mark().split("-"), strict=True))
    return "-".join((values | fields).values())


def containers() -> bool:
    """Whether there can be containers here."""
    try:
        return (
            subprocess.run([*CONTAINER, "true"], check=False, capture_output=True).returncode == 0
        )
    except OSError:
        return False


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
