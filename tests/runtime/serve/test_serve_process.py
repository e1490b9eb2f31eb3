"""`xopt serve` as a process: where it listens, and how it ends."""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from xopt.cli.commands.serve import read_keys
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder

RUN = "from xopt.cli.main import main; main()"
# What a forward meets that nobody foresaw.
BREAK = """
import time
from xopt.runtime.scoring.scorer import PlannedScorer
def broken(*_):
    time.sleep(1)
    raise RuntimeError("the backend broke")
PlannedScorer.run = broken
"""
LACK = "import sys; sys.modules['{}'] = None; "
# All that an image of the server lacks.
REFUSE = """
import sys
class Refusing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refusing())
"""
REQUIREMENTS = Path(__file__).parents[3] / "docs" / "deploy" / "requirements.txt"


def command(code: str, *options: str) -> list[str]:
    return [sys.executable, "-c", code, "serve", *options]


def environment() -> dict[str, str]:
    return {**os.environ, "XOPT_API_KEY": ""}


@contextmanager
def started(
    folder: ModelFolder,
    code: str = RUN,
    variant: str = "onnx-fp32",
    options: tuple[str, ...] = (),
) -> Iterator[tuple[Any, str]]:
    """Yield the process of a server, and its address."""
    options = (str(folder.path), "--port", "0", "--variant", variant, *options)
    with subprocess.Popen(
        command(code, *options), stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            found = (re.search(r"http://[\w.:]+", line) for line in process.stderr or ())
            yield process, next(match[0] for match in found if match)
        finally:
            process.kill()


def needed(names: list[str]) -> set[str]:
    """Return packages and what they need, of those that are installed."""
    found: set[str] = set()
    left = [*names]
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for line in importlib.metadata.requires(name) or ():
                requirement = Requirement(line)
                if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                    left.append(requirement.name)
    return found


def asked(clients: ThreadPoolExecutor, address: str, documents: int) -> Future[httpx.Response]:
    body = {"query": "how to copy", "documents": [f"file {n} " * 50 for n in range(documents)]}
    return clients.submit(httpx.post, f"{address}/v1/rerank", json=body, timeout=60)


def test_a_fault_of_the_backend_ends_the_process(tiny):
    with started(tiny, BREAK + RUN) as (process, address), ThreadPoolExecutor(4) as clients:
        replies = [asked(clients, address, 100) for _ in range(4)]
        assert [reply.result().status_code for reply in replies] == [503] * 4
        assert process.wait(30) == 1
        assert "the backend broke" in process.stderr.read()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_it_at_once_and_in_one_line(tiny, name):
    number = signal.Signals[name]
    with started(tiny) as (process, address), ThreadPoolExecutor(4) as clients:
        replies = [asked(clients, address, 10_000) for _ in range(4)]
        for _ in range(600):
            if "xopt_queue_requests 0.0" not in httpx.get(f"{address}/metrics").text:
                break
            time.sleep(0.05)
        process.send_signal(number)
        first = process.stderr.readline()
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert "no longer ready" in first
        assert process.stderr.read() == (
            "ending at once; requests that are under way get no answer\n"
        )
    assert all(isinstance(reply.exception(), httpx.TransportError) for reply in replies)


SLOW_WARM_UP = """
import time
from xopt.runtime.serve.engine import Engine
def start(*_):
    print("warming up", file=__import__("sys").stderr, flush=True)
    time.sleep(60)
Engine.start = start
"""


def test_a_signal_during_the_warm_up_ends_it_at_once(tiny):
    options = (str(tiny.path), "--port", "0", "--variant", "onnx-fp32")
    with subprocess.Popen(
        command(SLOW_WARM_UP + RUN, *options), stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            assert "warming up\n" in iter(process.stderr.readline, "")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
            assert len(process.stderr.read().splitlines()) == 1
        finally:
            process.kill()


def test_its_log_is_json_on_request(tiny):
    with started(tiny, options=("--log-format", "json")) as (process, address):
        with ThreadPoolExecutor(1) as clients:
            assert asked(clients, address, 3).result().status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert [line.get("status") for line in lines] == [200, None]
    assert "no longer ready" in lines[1]["message"]
    assert lines[0]["documents"] == 3


@pytest.mark.parametrize(
    ("variant", "library"), [("onnx-int8", "onnxruntime"), ("openvino-fp32", "openvino")]
)
def test_it_needs_no_more_than_its_image_has(tiny, variant, library):
    there = needed([*REQUIREMENTS.read_text(encoding="utf-8").split(), library])
    owners = importlib.metadata.packages_distributions()
    absent = {
        module
        for module, names in owners.items()
        if module != "xopt" and there.isdisjoint(map(canonicalize_name, names))
    }
    assert {"torch", "transformers", "sentence_transformers", "daft", "onnx", "scipy"} <= absent
    code = REFUSE.format(absent=absent) + RUN
    with started(tiny, code, variant) as (_, address), ThreadPoolExecutor(1) as clients:
        assert asked(clients, address, 10).result().status_code == 200


@pytest.mark.slow
def test_a_signal_ends_the_server_when_all_is_answered(tiny):
    with started(tiny) as (process, address), ThreadPoolExecutor(5) as clients:
        replies = [asked(clients, address, 10_000) for _ in range(4)]
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert httpx.get(f"{address}/ready").status_code == 503
        late = asked(clients, address, 10)  # a balancer may not know yet
        assert [reply.result().status_code for reply in [*replies, late]] == [200] * 5
        assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("wait_s", [0.1 * number for number in range(20)])
def test_no_request_that_was_taken_is_lost(tiny, wait_s):
    logged = ("--log-format", "json")
    with started(tiny, options=logged) as (process, address), ThreadPoolExecutor(8) as clients:
        replies = [asked(clients, address, 50 * (1 + number)) for number in range(32)]
        time.sleep(wait_s)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    answered = 0
    for reply in replies:
        # A connection that the server has not accepted yet is reset when its socket closes.
        if not isinstance(reply.exception(), (httpx.ConnectError, httpx.ReadError)):
            assert reply.result().status_code == 200
            answered += 1
    taken = [line["status"] for line in lines if "status" in line]
    assert taken == [200] * answered
    assert answered


def test_a_port_that_is_taken_is_one_line(tiny):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = (str(tiny.path), "--port", port)
        ended = subprocess.run(
            command(RUN, *options), capture_output=True, text=True, env=environment(), check=False
        )
    assert ended.returncode == 2
    assert f"--port {port}: cannot listen there" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("library", "extra", "options"),
    [("starlette", "serve", ()), ("opentelemetry", "otel", ("--otel", "numbers"))],
)
def test_without_the_extra_it_says_what_to_install(tiny, library, extra, options):
    ended = subprocess.run(
        command(LACK.format(library) + RUN, str(tiny.path), *options),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        f"Error: xopt serve: lacks {library}; it needs the extra {extra} "
        f"(pip install 'xopt-rerank[{extra}]')"
    ]


class Collector(BaseHTTPRequestHandler):
    """Keeps what is sent to it."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.received.append((self.path, body))  # type: ignore[attr-defined] # for the test
        self.send_response(200)
        self.end_headers()


def test_the_last_spans_are_sent_before_it_ends(tiny, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        collector.received = []  # type: ignore[attr-defined] # for the test
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        with (
            started(tiny, options=("--otel", "numbers")) as (process, place),
            ThreadPoolExecutor(1) as clients,
        ):
            assert asked(clients, place, 3).result().status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        collector.shutdown()
    (path, spans), *_ = collector.received  # type: ignore[attr-defined] # for the test
    assert path == "/v1/traces"
    assert b"reranker.model_name" in spans
    assert b"how to copy" not in spans


def test_a_variant_whose_library_is_absent_is_one_line(tiny):
    code = LACK.format("openvino") + RUN
    options = (str(tiny.path), "--port", "0", "--variant", "openvino-fp32")
    ended = subprocess.run(
        command(code, *options), capture_output=True, text=True, env=environment(), check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "Error: variants of openvino need the package openvino, which is not installed; "
        "install it, or name another variant"
    )


def test_keys_are_read_from_an_option_and_a_file(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("one\n\ntwo\n", encoding="utf-8")
    assert read_keys(None, None) == read_keys("", None) == ()
    assert read_keys("zero", file) == ("zero", "one", "two")
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(BadInput, match="is empty"):
        read_keys(None, file)
    with pytest.raises(BadInput, match="cannot be read"):
        read_keys(None, tmp_path / "none")
