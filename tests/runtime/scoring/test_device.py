from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.device import check_device


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = "device 'cuda': torch sees no CUDA GPU here; use `device=\"cpu\"`"
    with pytest.raises(BadInput, match=message):
        check_device("cuda")
    with pytest.raises(BadInput, match="device 'gpu': unknown; use cpu or cuda"):
        check_device("gpu")


CLAIM = """
import os, sys, torch
from xopt.runtime.scoring.device import claim_gpu
from xopt.runtime.errors import BadInput
torch.cuda.device_count = lambda: int(sys.argv[1])
try:
    claim_gpu()
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
except BadInput as error:
    print(error, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("visible", "count", "claimed"),
    [
        (
            None,
            2,
            [
                "0",
                "1",
                "all 2 GPUs are claimed by other workers; give no more workers than there are GPUs",
            ],
        ),
        ("3, 5", 8, ["3", "5"]),
        ("4", 8, ["4"]),  # as Ray does it
        (None, 1, ["None"]),
    ],
)
def test_workers_on_one_machine_have_a_gpu_each(
    tmp_path: Path, visible: str | None, count: int, claimed: list[str]
) -> None:
    named = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    with contextlib.ExitStack() as stack:
        for expected in claimed:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CLAIM, str(count)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "TMPDIR": str(tmp_path), **named},
                )
            )
            assert process.stdout is not None
            assert process.stdout.readline().strip() == expected
