"""What a device can run, and which variants of a model folder make sense on it."""

from __future__ import annotations

import importlib.util
import logging

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Variant
from xopt.runtime.machine import has_bf16

__all__ = ["check_device", "check_name", "has_flash", "has_openvino", "variants_on"]

log = logging.getLogger(__name__)


def check_name(device: str) -> None:
    """Raises BadInput where `device` is neither "cpu" nor "cuda"."""
    if device not in ("cpu", "cuda"):
        raise BadInput(f"device {device!r}: unknown; use cpu or cuda")


def check_device(device: str, variant: Variant | None = None) -> None:
    """Raises BadInput where `device` is not there or cannot run `variant`, before that loads."""
    check_name(device)
    if device == "cpu":
        return
    if variant is not None and variant.backend == "openvino":
        raise BadInput(f"device {device!r}: {variant.name} runs on a CPU only; use --device cpu")
    import torch

    if not torch.cuda.is_available():
        raise BadInput(f"device {device!r}: torch sees no CUDA GPU here; use --device cpu")


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
    fitting = [variant for variant in folder.manifest.variants.values() if _fits(variant, device)]
    if device == "cpu":
        return [variant.name for variant in fitting]
    from xopt.runtime.onnx_backend import has_provider

    runs = {"torch": True, "torch-varlen": has_flash(), "onnx": has_provider(device)}
    for variant in fitting:
        if not runs[variant.backend]:
            log.warning("%s is left out: see docs/gpu.md for what it needs on a GPU", variant.name)
    return [variant.name for variant in fitting if runs[variant.backend]]


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
