"""What a device can run, and which variants of a model folder make sense on it."""

from __future__ import annotations

import importlib.util

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ModelFolder, Variant
from xopt.runtime.machine import has_bf16

__all__ = ["check_device", "has_flash", "has_openvino", "variants_on"]


def check_device(device: str, variant: Variant | None = None) -> None:
    """Raises BadInput where `device` is not "cpu" or a GPU that is there, or cannot run `variant`; before it loads."""
    if device == "cpu":
        return
    if variant is not None and variant.backend == "openvino":
        raise BadInput(f"device {device!r}: {variant.name} runs on a CPU only; use --device cpu")
    import torch

    if device != "cuda" or not torch.cuda.is_available():
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
    """The variants that make sense on a device: what commands run unless told which."""
    return [variant.name for variant in folder.manifest.variants.values() if _fits(variant, device)]


def _fits(variant: Variant, device: str) -> bool:
    if device == "cuda":  # INT8 is many times slower than half precision there, and flash attention knows no FP32
        if variant.backend == "onnx":
            from xopt.runtime.onnx_backend import has_provider

            return variant.precision != "int8" and has_provider(device)
        if variant.backend == "torch-varlen":
            return variant.precision != "fp32" and has_flash()
        return variant.backend == "torch"
    if variant.backend == "torch-varlen" or variant.precision == "fp16":  # no faster than ONNX; far slower
        return False
    if variant.backend == "openvino" and not has_openvino():
        return False
    return variant.precision != "bf16" or has_bf16()
