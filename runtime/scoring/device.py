"""Devices: whether one is there, and a GPU of its own for each of several workers."""

from __future__ import annotations

import contextlib
import getpass
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from xopt.runtime.errors import BadInput

__all__ = ["check_device", "check_name", "claim_gpu"]

_claimed: list[FileLock] = []  # a lock that is forgotten is released


def check_name(device: str) -> None:
    """Raises BadInput where `device` is neither "cpu" nor "cuda"."""
    if device not in ("cpu", "cuda"):
        raise BadInput(f"device {device!r}: unknown; use cpu or cuda")


def check_device(device: str) -> None:
    """Raises BadInput where `device` is not there."""
    check_name(device)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput(f"device {device!r}: torch sees no CUDA GPU here; use --device cpu")


def claim_gpu() -> None:
    """Leave this process, which has not used a GPU yet, one that no other of this user's has
    claimed.

    Daft's own runner gives its workers all GPUs that are there, Ray one each, which is then taken
    as it is. Held until the process ends. Raises BadInput where all are claimed.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) < 2:
        return
    for gpu in gpus:
        lock = FileLock(
            Path(tempfile.gettempdir()) / f"xopt-{getpass.getuser()}-gpu-{gpu.strip()}.lock"
        )
        with contextlib.suppress(Timeout):  # another worker has this one
            lock.acquire(timeout=0)
            _claimed.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu.strip()
            return
    raise BadInput(
        f"all {len(gpus)} GPUs are claimed by other workers; give no more workers than there are GPUs"
    )
