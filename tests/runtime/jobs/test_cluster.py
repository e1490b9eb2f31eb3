from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xopt.runtime import rerank_files
from xopt.runtime.folder import ModelFolder

pytestmark = pytest.mark.slow

XOPT = Path(sys.executable).with_name("xopt")
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONWARNINGS": "ignore"}
# In a process of its own, since Ray leaves processes and warnings behind: says its address, and
# at a line loses a node.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
others = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
if sys.stdin.readline():
    cluster.remove_node(others[0], allow_graceful=False)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def cluster() -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of three nodes on this machine, of one CPU each; and what makes one of them
    disappear.
    """
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines, stdin = process.stdout, process.stdin
        address = next(line.strip() for line in lines if line[0].isdigit())

        def lose() -> None:
            stdin.write("lose\n")
            stdin.flush()

        yield address, lose


def test_a_job_on_three_nodes_survives_the_loss_of_one(
    tiny: ModelFolder,
    tmp_path: Path,
    parquet: Callable[..., str],
    cluster: tuple[str, Callable[[], None]],
) -> None:
    rows = range(60000)
    many = parquet(
        [
            {
                "query_id": i // 20,
                "query": f"data {i // 20}",
                "doc_id": i,
                "text": f"index {i % 977}",
            }
            for i in rows
        ]
    )
    rerank_files(tiny.path, [many], tmp_path / "whole.jsonl")
    address, lose = cluster
    out, notes = tmp_path / "out.jsonl", tmp_path / "out.jsonl.job" / "done"
    asked = [XOPT, "rerank", tiny.path, many, "-o", out, "--where", address, "--threads", "1"]
    with subprocess.Popen(
        list(map(str, asked)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        while process.poll() is None and len(list(notes.glob("*.json"))) < 2:
            time.sleep(0.05)
        lose()
        _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
