from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xopt.runtime.errors import BadInput
from xopt.runtime.scoring.device import check_device, unnumbered


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = "device 'cuda': torch sees no CUDA GPU here; use `device=\"cpu\"`"
    with pytest.raises(BadInput, match=message):
        check_device("cuda")
    with pytest.raises(BadInput, match="device 'gpu': unknown; use cpu or cuda"):
        check_device("gpu")


@pytest.mark.parametrize(
    ("gpus", "device", "name"),
    [(1, "cuda:0", "cuda"), (1, "cuda", "cuda"), (4, "cuda", "cuda"), (0, "cuda:0", "cuda")],
)
def test_the_number_of_the_only_gpu_is_left_out(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, name: str
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert unnumbered(device) == name


@pytest.mark.parametrize(
    ("gpus", "seen", "number"), [(1, "1 GPU", 1), (2, "2 GPUs", 0), (4, "4 GPUs", 3)]
)
def test_one_of_several_gpus_is_chosen_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, gpus: int, seen: str, number: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    message = f"device 'cuda:{number}': this process sees {seen}; set CUDA_VISIBLE_DEVICES={number}"
    with pytest.raises(BadInput, match=message):
        unnumbered(f"cuda:{number}")


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
