"""The table of all backends, and which variants of a model folder run where.

A new backend is a file in `backends/` and a row here.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ONNX_FILE, WEIGHTS, ModelFolder, Plan, Variant, modules_of
from xopt.runtime.machine import has_bf16, has_module, saturates
from xopt.runtime.scoring.backends.backend import Backend
from xopt.runtime.scoring.device import check_device, check_name

__all__ = [
    "BACKENDS",
    "REFERENCE",
    "BackendKind",
    "check_variant",
    "exported_variants",
    "overflows",
    "runs_in_sentence_transformers",
    "variants_on",
]

log = logging.getLogger(__name__)

REFERENCE = "torch-fp32"  # the variant that every other one is judged against


def _lazy(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports its module when it is called."""

    def call(*arguments: Any) -> Any:
        try:
            imported = importlib.import_module(f"xopt.runtime.scoring.backends.{module}")
        except ModuleNotFoundError as error:
            raise BadInput(
                f"variants of {module} need the package {error.name}, which is not installed; "
                "install it, or name another variant"
            ) from error
        return getattr(imported, name)(*arguments)

    return call


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


@dataclass(frozen=True)
class BackendKind:
    """What sets a backend apart."""

    # By device that it runs on: what commands run there by default.
    precisions: dict[str, tuple[str, ...]]
    # What export writes, and the precisions that need nothing else.
    file: str
    exported: tuple[str, ...]
    open: Callable[[ModelFolder, Variant, Plan, str], Backend]
    takes: Callable[[Path], bool] = _always  # the model in a folder
    gpu_ready: Callable[[], bool] = _always
    tried: bool = False  # some graphs fail: commands open a variant first
    compiles: bool = False  # for each new shape, which does not count as its speed
    in_sentence_transformers: Callable[[ModelFolder], bool] = _never


def runs_in_sentence_transformers(folder: ModelFolder) -> bool:
    """Return whether the folder's graphs take pairs as other tools make them."""
    manifest = folder.manifest
    plain = manifest.padding_side == "right" and not manifest.template
    return plain and len(modules_of(folder.path)) <= 1


def _optimum_runs(folder: ModelFolder) -> bool:
    return has_module("optimum.onnxruntime") and runs_in_sentence_transformers(folder)


BACKENDS = {
    "torch": BackendKind(
        # A CPU emulates FP16.
        {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16", "bf16")},
        WEIGHTS,
        ("fp32", "fp16", "bf16"),
        _lazy("torch", "TorchBackend"),
        in_sentence_transformers=_always,
    ),
    "torch-varlen": BackendKind(
        # On a CPU it is no faster than ONNX, and flash attention has no FP32.
        {"cpu": (), "cuda": ("fp16", "bf16")},
        WEIGHTS,
        ("fp32", "fp16", "bf16"),
        _lazy("torch", "TorchBackend"),
        takes=_lazy("varlen", "has_packed_form"),
        gpu_ready=_lazy("torch", "has_flash"),
    ),
    "onnx": BackendKind(
        # On a GPU INT8 is far slower than FP16.
        {"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16")},
        ONNX_FILE,
        ("fp32",),
        _lazy("onnx", "OnnxBackend"),
        gpu_ready=_lazy("onnx", "has_cuda"),
        in_sentence_transformers=_optimum_runs,
    ),
    # sentence-transformers needs optimum-intel for it, which bars optimum-onnx
    "openvino": BackendKind(
        {"cpu": ("fp32", "bf16", "int8")},
        ONNX_FILE,
        ("fp32", "bf16"),
        _lazy("openvino", "OpenVinoBackend"),
        tried=True,
        compiles=True,
    ),
}


def exported_variants(folder: Path, recipe: dict[str, Any] | None) -> list[Variant]:
    """Return the variants of what export wrote; `recipe` is that of the graph, if any."""
    recipes: dict[str, dict[str, Any]] = {WEIGHTS: {}}
    if recipe is not None:
        recipes[ONNX_FILE] = recipe
    variants = []
    for backend, kind in BACKENDS.items():
        if kind.file in recipes and kind.takes(folder):
            kind_recipe = recipes[kind.file]
            for precision in kind.exported:
                name = f"{backend}-{precision}"
                variants.append(Variant(name, backend, precision, kind.file, kind_recipe))
    return variants


def check_variant(variant: Variant, device: str) -> None:
    """Raise BadInput where `device` is not there or cannot run `variant`."""
    check_name(device)
    kind = BACKENDS.get(variant.backend)
    if kind is None:
        raise BadInput(
            f"variant {variant.name!r}: unknown backend {variant.backend!r}; a newer xopt made it"
        )
    if device not in kind.precisions:
        raise BadInput(f'device {device!r}: {variant.name} runs on a CPU only; use `device="cpu"`')
    check_device(device)
    if device == "cpu" and overflows(variant):
        raise BadInput(f"{variant.name}: {_overflow(variant)}")


def variants_on(folder: ModelFolder, device: str) -> list[str]:
    """Return the variants that commands run on a device by default.

    Those that cannot run are left out with a warning; OpenVINO's are opened to find out.
    Raises BadInput where a file of theirs is damaged.
    """
    able = []
    for variant in folder.manifest.variants.values():
        if _is_default(variant, device):
            reason = _why_not(folder, variant, device)
            if reason:
                log.warning("%s is left out: %s", variant.name, reason)
            else:
                able.append(variant.name)
    return able


def overflows(variant: Variant) -> bool:
    """Return whether INT8 made for another processor overflows on this one."""
    return variant.recipe.get("weight_bits") == 8 and saturates()


def _overflow(variant: Variant) -> str:
    return (
        f"made for {variant.recipe['target']}: its 8-bit sums overflow on this processor; "
        "make it again here with `xopt quantize`"
    )


def _is_default(variant: Variant, device: str) -> bool:
    kind = BACKENDS.get(variant.backend)
    if kind is None or variant.precision not in kind.precisions.get(device, ()):
        return False
    return device == "cuda" or variant.precision != "bf16" or has_bf16()


def _why_not(folder: ModelFolder, variant: Variant, device: str) -> str:
    """Return why a variant cannot run here; empty where it can."""
    kind = BACKENDS[variant.backend]
    if device == "cuda":
        return "" if kind.gpu_ready() else "what it needs on a GPU is not installed here"
    if overflows(variant):
        return _overflow(variant)
    if kind.tried:
        folder.checked(variant.file)  # damage is an error, and not only left out
        try:
            kind.open(folder, variant, Plan(callers=1, threads=1, tokens=1), device)
        except BadInput as error:
            return str(error)
    return ""
