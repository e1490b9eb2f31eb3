"""What a device can run, and which variants of a model folder make sense on it."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import logging
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Variant
from xopt.runtime.machine import has_bf16, saturates

__all__ = ["check_device", "check_name", "claim_gpu", "has_flash", "has_openvino", "overflows", "variants_on"]

log = logging.getLogger(__name__)

_claimed: list[FileLock] = []  # a lock that is forgotten is released


def check_name(device: str) -> None:
    """Raises BadInput where `device` is neither "cpu" nor "cuda"."""
    if device not in ("cpu", "cuda"):
        raise BadInput(f"device {device!r}: unknown; use cpu or cuda")


def check_device(device: str, variant: Variant | None = None) -> None:
    """Raises BadInput where `device` is not there or cannot run `variant`, before that loads."""
    check_name(device)
    if device == "cpu":
        if variant is not None and overflows(variant):
            raise BadInput(f"{variant.name}: {_foreign(variant)}")
        return
    if variant is not None and variant.backend == "openvino":
        raise BadInput(f"device {device!r}: {variant.name} runs on a CPU only; use --device cpu")
    import torch

    if not torch.cuda.is_available():
        raise BadInput(f"device {device!r}: torch sees no CUDA GPU here; use --device cpu")


def claim_gpu() -> None:
    """Leave this process, which has not used a GPU yet, one that no other of this user's has claimed.

    Daft's own runner gives its workers all GPUs that are there, Ray one each, which is then taken as it is. Held
    until the process ends. Raises BadInput where all are claimed.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) < 2:
        return
    for gpu in gpus:
        lock = FileLock(Path(tempfile.gettempdir()) / f"xopt-{getpass.getuser()}-gpu-{gpu.strip()}.lock")
        with contextlib.suppress(Timeout):  # another worker has this one
            lock.acquire(timeout=0)
            _claimed.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu.strip()
            return
    raise BadInput(f"all {len(gpus)} GPUs are claimed by other workers; give no more workers than there are GPUs")


def overflows(variant: Variant) -> bool:
    """Whether a variant's INT8 was made for another processor, and its sums overflow on this one."""
    return variant.recipe.get("weight_bits") == 8 and saturates()


def has_openvino() -> bool:
    """Whether the extra `openvino` is installed."""
    return importlib.util.find_spec("openvino") is not None


def has_flash() -> bool:
    """Whether torch has flash attention over packed pairs (since 2.10) and the GPU, if any, runs it (since Ampere)."""
    import torch

    there = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    return there and (not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0))


def variants_on(folder: ModelFolder, device: str) -> list[str]:
    """The variants that make sense on a device: what commands run unless told which. Warns of what cannot run."""
    lacking = _lacking_on_cpu if device == "cpu" else _lacking_on_gpu
    able = []
    for variant in folder.manifest.variants.values():
        if _fits(variant, device):
            reason = lacking(variant)
            if reason:
                log.warning("%s is left out: %s", variant.name, reason)
            else:
                able.append(variant.name)
    return able


def _lacking_on_cpu(variant: Variant) -> str:
    return _foreign(variant) if overflows(variant) else ""


def _lacking_on_gpu(variant: Variant) -> str:
    from xopt.runtime.scoring.backends.onnx import has_provider

    runs = {"torch": True, "torch-varlen": has_flash(), "onnx": has_provider("cuda")}
    return "" if runs[variant.backend] else "see docs/gpu.md for what it needs on a GPU"


def _foreign(variant: Variant) -> str:
    return (
        f"made for {variant.recipe['target']}: its 8-bit sums overflow on this processor; make it again here with "
        "`xopt quantize`"
    )


def _fits(variant: Variant, device: str) -> bool:
    if device == "cuda":
        if variant.backend == "torch-varlen":
            return variant.precision != "fp32"  # flash attention has none
        return variant.backend in ("torch", "onnx") and variant.precision != "int8"  # far slower there than FP16
    if variant.backend == "torch-varlen" or variant.precision == "fp16":
        return False  # packed is no faster than ONNX on a CPU, and FP16 is emulated
    if variant.backend == "openvino" and not has_openvino():
        return False
    return variant.precision != "bf16" or has_bf16()
