"""Devices: checks that one is there, and claims a GPU for each of several workers."""

from __future__ import annotations

import contextlib
import getpass
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from xopt.runtime.errors import BadInput

__all__ = ["check_device", "check_name", "claim_gpu", "unnumbered"]

_claimed: list[FileLock] = []  # a lock that is garbage collected is released


def check_name(device: str) -> None:
    """Raise BadInput where `device` is neither "cpu" nor "cuda"."""
    if device.partition(":")[0] in ("mps", "xpu", "npu", "hpu"):
        raise BadInput(f"device {device!r}: no variant runs on it; use cpu or cuda")
    if device not in ("cpu", "cuda"):
        raise BadInput(f"device {device!r}: unknown; use cpu or cuda")


def unnumbered(device: object) -> str:
    """Return the name of a device as torch writes it, "cuda:0" or 0, without its number.

    Raises BadInput where that is one of several GPUs, or one that is not there.
    """
    if isinstance(device, int):
        device = f"cuda:{device}"
    name, _, number = str(device).partition(":")
    if name == "cuda" and number:
        import torch

        seen = torch.cuda.device_count()
        if seen > 1 or (seen == 1 and number != "0"):
            raise BadInput(
                f"device {str(device)!r}: this process sees {seen} GPU{'s' * (seen > 1)}; "
                f'set CUDA_VISIBLE_DEVICES={number} and give `device="cuda"`'
            )
        return name
    return name if (name, number) == ("cpu", "0") else str(device)


def check_device(device: str) -> None:
    """Raise BadInput where `device` is unknown or not there."""
    check_name(device)
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadInput(f'device {device!r}: torch sees no CUDA GPU here; use `device="cpu"`')


def claim_gpu() -> None:
    """Show this process, before it uses CUDA, one GPU that no other of this user's has.

    Daft's own runner shows each worker all GPUs. Ray shows one, which is used as it is.
    The claim lasts until the process ends. Raises BadInput where all are claimed.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) < 2:
        return
    for gpu in gpus:
        name = f"xopt-{getpass.getuser()}-gpu-{gpu.strip()}.lock"
        lock = FileLock(Path(tempfile.gettempdir()) / name)
        with contextlib.suppress(Timeout):  # another worker has this one
            lock.acquire(timeout=0)
            _claimed.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu.strip()
            return
    raise BadInput(
        f"all {len(gpus)} GPUs are claimed by other workers; "
        "give no more workers than there are GPUs"
    )
