"""`xopt.runtime.serve.ray` on Ray Serve: replicas, their loss, and their end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from xopt.runtime.folder import ModelFolder

pytest.importorskip("ray.serve", reason="the extra ray is not installed")
pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONWARNINGS": "ignore"}
BREAKING = "the backend breaks at this text"
BODY = {"query": "how to copy", "documents": ["copy a file", "data", "index of a file"]}
# In a process of its own, since Ray leaves processes and warnings behind: says when it serves,
# and ends at a line. One text breaks the engine of the replica that meets it.
SERVING = f"""
import sys

import ray
from ray import serve
from xopt.runtime.serve.ray import Options, build

def break_engine():
    from xopt.runtime.serve.engine import Engine

    tokenise = Engine.tokenise

    def breaking(engine, queued, pairs):
        if pairs[0][1] == {BREAKING!r}:
            engine.scorer.run = None
        return tokenise(engine, queued, pairs)

    Engine.tokenise = breaking

ray.init(num_cpus=2, runtime_env={{"worker_process_setup_hook": break_engine}})
serve.start(http_options={{"port": int(sys.argv[2])}})
serve.run(build(Options(model=sys.argv[1], variant="onnx-fp32", threads=1, replicas=2)))
print("serving", flush=True)
sys.stdin.readline()
serve.delete("default")
print("deleted", flush=True)
ray.shutdown()
"""


@pytest.fixture
def serving(tiny: ModelFolder) -> Iterator[tuple[Any, httpx.Client]]:
    """The process that has started Ray Serve, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", SERVING, str(tiny.path), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert any(line == "serving\n" for line in process.stdout)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            yield process, client


def replicas(process: Any) -> set[int]:
    """Return the processes that serve."""
    children = psutil.Process(process.pid).children(recursive=True)
    return {child.pid for child in children if "ServeReplica" in " ".join(command_of(child))}


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.1)


def scores(reply: httpx.Response) -> list[float]:
    assert reply.status_code == 200, reply.text
    return [result["relevance_score"] for result in reply.json()["results"]]


def test_a_replica_that_is_lost_or_broken_is_replaced(serving, client) -> None:
    process, cluster = serving
    expected = pytest.approx(scores(client.post("/v1/rerank", json=BODY)))
    first = replicas(process)
    assert len(first) == 2
    assert scores(cluster.post("/v1/rerank", json=BODY)) == expected
    assert cluster.get("/ready").status_code == 200

    psutil.Process(min(first)).kill()
    wait_until(lambda: len(replicas(process) - {min(first)}) == 2)
    second = replicas(process)
    assert scores(cluster.post("/v1/rerank", json=BODY)) == expected

    cluster.post("/v1/rerank", json={"query": "break", "documents": [BREAKING]})
    wait_until(lambda: len(second - replicas(process)) == 1 and len(replicas(process)) == 2)
    assert scores(cluster.post("/v1/rerank", json=BODY)) == expected

    many = {"query": "how to copy", "documents": [f"file {n} " * 50 for n in range(10_000)]}
    with ThreadPoolExecutor(1) as clients:
        reply = clients.submit(cluster.post, "/v1/rerank", json=many)
        time.sleep(1)
        process.stdin.write("end\n")
        process.stdin.flush()
        assert len(scores(reply.result())) == 10_000
    assert "deleted\n" in process.stdout
    assert process.wait(60) == 0
