"""Servers as processes, for the scripts beside this one: started, watched and ended."""

from __future__ import annotations

import http.client
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

HOST = "127.0.0.1"
STARTING_S = 300
ENDING_S = 120


@dataclass(frozen=True)
class Server:
    """A server that answers, and the file with what it says."""

    port: int
    process: psutil.Popen
    log: Path

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def rss_bytes(self) -> int:
        """Return the memory of the process and all that it began."""
        return sum(each.memory_info().rss for each in self._tree())

    def cpu_s(self) -> float:
        """Return the seconds of all cores that it and its processes have had."""
        times = [each.cpu_times() for each in self._tree()]
        return sum(each.user + each.system for each in times)

    def end(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.terminate()
        return int(self.process.wait(ENDING_S))

    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.socket() as place:
        place.bind((HOST, 0))
        return int(place.getsockname()[1])


def xopt_serve(folder: str, variant: str, threads: int, port: int, *more: str) -> list[str]:
    """Return the command of xopt's own server."""
    command = [sys.executable, "-m", "xopt", "serve", folder, "--variant", variant]
    return [*command, "--threads", str(threads), "--port", str(port), *more]


@contextmanager
def started(
    command: Sequence[str], port: int, log: Path, ready: str = "/ready", **variables: str
) -> Iterator[Server]:
    """Yield a server once `ready` answers 200, and kill what is left of it at the end."""
    environment = {**os.environ, **variables}
    with log.open("w") as said:
        process = psutil.Popen(command, stdout=said, stderr=said, env=environment)
    server = Server(port, process, log)
    try:
        _wait(server, ready)
        yield server
    finally:
        for each in server._tree() if process.is_running() else []:
            each.kill()
        process.wait()


def _wait(server: Server, ready: str) -> None:
    ends_s = time.monotonic() + STARTING_S
    while not _answers(server.port, ready):
        if server.process.poll() is not None or time.monotonic() > ends_s:
            sys.exit(f"the server has not started:\n{server.log.read_text()[-2000:]}")
        time.sleep(0.2)


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
