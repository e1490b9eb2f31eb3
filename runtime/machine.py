"""The machine that xopt runs on: what a plan was found for and what a result was measured on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from functools import cache
from pathlib import Path, PurePosixPath

import psutil

__all__ = [
    "cores",
    "cpu_flags",
    "cpu_name",
    "has_bf16",
    "has_module",
    "machine_name",
    "memory_bytes",
    "saturates",
    "versions_here",
]

UNLIMITED = 1 << 20
LEAST_FLAGS: dict[str, tuple[str, ...]] = {
    "arm64": ("asimd",),
    "aarch64": ("asimd",),
    "x86_64": ("sse2",),
    "amd64": ("sse2",),
}
LIBRARIES = (
    "xopt-rerank",
    "torch",
    "transformers",
    "sentence-transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "daft",
)


def has_module(name: str) -> bool:
    """Whether a module is installed; it is not imported, but for the packages that it lies in."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def cores() -> int:
    """The cores that this process may use: by its affinity, and by its control groups' share of
    CPU time.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min([allowed, *_quotas()]))


def _quotas(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Whole cores that each control group which this process is in may keep busy, version 1 or 2,
    outer ones too.
    """
    found = []
    for line in (own.read_text(encoding="utf-8") if own.is_file() else "0::/").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        inner = PurePosixPath(group.lstrip("/"))
        # in a container the group's path may be that of the host
        for folder in (inner, *inner.parents):
            if controllers:
                found.append(
                    _quota(
                        root / "cpu" / folder / "cpu.cfs_quota_us",
                        root / "cpu" / folder / "cpu.cfs_period_us",
                    )
                )
            else:
                found.append(_quota(root / folder / "cpu.max"))
    return found


def _quota(*files: Path) -> int:
    """Whole cores by a quota and a period, in one file or two; very many where there is no
    limit.
    """
    try:
        quota, period = " ".join(file.read_text(encoding="ascii") for file in files).split()
        return int(quota) // int(period) if int(quota) > 0 else UNLIMITED
    except (OSError, ValueError, ZeroDivisionError):  # not there, "max", or no quota at all
        return UNLIMITED


@cache
def cpu_name() -> str:
    """The processor's name as the operating system gives it."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    # on ARM, where no name tells one from another
    makers = (_cpuinfo("CPU implementer"), _cpuinfo("CPU part"))
    return " ".join([name, *filter(None, makers)])


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets that Linux reports; elsewhere (macOS, Windows) what every processor of
    the kind has.
    """
    reported = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return frozenset(reported or LEAST_FLAGS.get(platform.machine().lower(), ()))


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 natively; elsewhere torch emulates it, slower
    than FP32.
    """
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def saturates() -> bool:
    """Whether this processor adds products of 8-bit numbers in 16 bits, where the sum of two can
    overflow.

    So does each of x86 that does not show VNNI.
    """
    return "sse2" in cpu_flags() and cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni"})


def machine_name(device: str = "cpu") -> str:
    """The name under which plans for a device of this machine are kept: GPU or processor, and
    usable cores.
    """
    if device == "cpu":
        return f"{cpu_name()} x {cores()}"
    import torch

    return f"{torch.cuda.get_device_name()}, {cores()} cores"


def memory_bytes() -> int:
    """The machine's memory in bytes."""
    return int(psutil.virtual_memory().total)


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), ""
    )


def versions_here() -> dict[str, str]:
    """The versions of the libraries that make a model folder and run it."""
    here = {package.name for package in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in LIBRARIES if name in here}
