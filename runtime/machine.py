"""The machine that xopt runs on, and the libraries that are installed on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath

__all__ = [
    "cores",
    "cpu_flags",
    "cpu_name",
    "has_bf16",
    "has_module",
    "machine_name",
    "saturates",
    "versions_here",
]

UNLIMITED = 1 << 20
# What every processor of a kind has, for systems that do not report the flags of their own.
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
    """Return whether a module is installed, without importing more than its parent packages."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def cores() -> int:
    """Return how many cores this process may use, by its affinity and its control groups."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, min([allowed, *_quotas()]))


def _quotas(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Return the whole cores that each control group around this process allows; cgroups(7)."""
    quotas = []
    lines = own.read_text(encoding="utf-8") if own.is_file() else "0::/"
    for line in lines.splitlines():
        _, controllers, group = line.split(":", 2)
        inner = PurePosixPath(group.lstrip("/"))
        # In a container the path may be the host's, and only the outer groups are there.
        for place in (inner, *inner.parents):
            if not controllers:  # version 2
                quotas.append(_quota(root / place / "cpu.max"))
            elif "cpu" in controllers.split(","):
                folder = root / "cpu" / place
                quotas.append(_quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))
    return quotas


def _quota(*files: Path) -> int:
    """Return the whole cores that a quota and a period allow, read from one file or two."""
    try:
        quota, period = " ".join(file.read_text(encoding="ascii") for file in files).split()
        return int(quota) // int(period) if int(quota) > 0 else UNLIMITED
    except (OSError, ValueError, ZeroDivisionError):  # no such file, "max", or no quota at all
        return UNLIMITED


@cache
def cpu_name() -> str:
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    # On ARM nothing but these numbers tells one processor from another.
    parts = [name, _cpuinfo("CPU implementer"), _cpuinfo("CPU part")]
    return " ".join(part for part in parts if part)


@cache
def cpu_flags() -> frozenset[str]:
    """Return the processor's instruction sets, as Linux names them."""
    reported = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return frozenset(reported or LEAST_FLAGS.get(platform.machine().lower(), ()))


def has_bf16() -> bool:
    """Return whether this processor multiplies bfloat16; else torch emulates it, slowly."""
    return not cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def saturates() -> bool:
    """Return whether sums of two products of 8-bit numbers can overflow on this processor.

    x86 without VNNI adds them in 16 bits.
    """
    return "sse2" in cpu_flags() and cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni"})


def machine_name(device: str = "cpu") -> str:
    """Return the name that plans are kept under: the processor or GPU, and the usable cores."""
    if device == "cpu":
        return f"{cpu_name()} x {cores()}"
    import torch

    return f"{torch.cuda.get_device_name()}, {cores()} cores"


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def versions_here() -> dict[str, str]:
    """Return the versions of the libraries that make a model folder and run it."""
    versions = {}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
