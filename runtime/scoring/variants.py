"""All backends in one table, and which variants of a model folder run where.

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
    "reads_as_others",
    "variants_on",
]

log = logging.getLogger(__name__)

REFERENCE = "torch-fp32"  # the variant that every other is judged against


def _lazily(module: str, name: str) -> Callable[..., Any]:
    """A function or class of a backend's module, which is imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"xopt.runtime.scoring.backends.{module}"), name)(
            *arguments
        )

    return call


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


@dataclass(frozen=True)
class BackendKind:
    """A backend's row.

    precisions: for each device that it can run on, the precisions that commands run there unless
    told which. file, exported: the precisions that need nothing but that file, which export
    writes; quantising makes others. open: makes the backend of a model folder, a variant, a plan
    and a device. takes: whether it has a form of the model in a folder. gpu_ready: whether its
    package can use the GPU. tried: whether it takes only some graphs, so that commands try to
    open a variant before they run it on a CPU. compiles: whether it compiles for each shape that
    it meets, which is no part of its speed.
    in_sentence_transformers: whether sentence-transformers, as it is installed, runs the variants
    of a folder too.
    """

    name: str
    precisions: dict[str, tuple[str, ...]]
    file: str
    exported: tuple[str, ...]
    open: Callable[[ModelFolder, Variant, Plan, str], Backend]
    takes: Callable[[Path], bool] = _always
    gpu_ready: Callable[[], bool] = _always
    tried: bool = False
    compiles: bool = False
    in_sentence_transformers: Callable[[ModelFolder], bool] = _never


def reads_as_others(folder: ModelFolder) -> bool:
    """Whether the folder's graphs read pairs as other tools make them, to logits.

    So they do where the model is one module, has no chat template, and is padded on the right.
    """
    own = folder.manifest
    return own.padding_side == "right" and not own.template and len(modules_of(folder.path)) <= 1


def _optimum_runs(folder: ModelFolder) -> bool:
    """Whether sentence-transformers runs the folder's graphs, which it does through optimum."""
    return has_module("optimum.onnxruntime") and reads_as_others(folder)


BACKENDS = {
    kind.name: kind
    for kind in (
        BackendKind(
            "torch",
            {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "fp16", "bf16")},  # a CPU emulates FP16
            WEIGHTS,
            ("fp32", "fp16", "bf16"),
            _lazily("torch", "TorchBackend"),
            in_sentence_transformers=_always,
        ),
        BackendKind(
            "torch-varlen",
            # on a CPU no faster than ONNX; flash attention has no FP32
            {"cpu": (), "cuda": ("fp16", "bf16")},
            WEIGHTS,
            ("fp32", "fp16", "bf16"),
            _lazily("torch", "TorchBackend"),
            takes=_lazily("varlen", "has_packed_form"),
            gpu_ready=_lazily("torch", "has_flash"),
        ),
        BackendKind(
            "onnx",
            # INT8 is far slower on a GPU than FP16
            {"cpu": ("fp32", "int8"), "cuda": ("fp32", "fp16")},
            ONNX_FILE,
            ("fp32",),
            _lazily("onnx", "OnnxBackend"),
            gpu_ready=_lazily("onnx", "has_cuda"),
            in_sentence_transformers=_optimum_runs,
        ),
        BackendKind(  # sentence-transformers' own needs optimum-intel, which bars optimum-onnx
            "openvino",
            {"cpu": ("fp32", "bf16", "int8")},
            ONNX_FILE,
            ("fp32", "bf16"),
            _lazily("openvino", "OpenVinoBackend"),
            tried=True,
            compiles=True,
        ),
    )
}


def exported_variants(folder: Path, recipe: dict[str, Any] | None) -> list[Variant]:
    """The variants of what export has written into `folder`; `recipe` tells how the graph was
    made, None of none.
    """
    made = {WEIGHTS: {}, **({} if recipe is None else {ONNX_FILE: recipe})}
    return [
        Variant(f"{kind.name}-{precision}", kind.name, precision, kind.file, made[kind.file])
        for kind in BACKENDS.values()
        if kind.file in made and kind.takes(folder)
        for precision in kind.exported
    ]


def check_variant(variant: Variant, device: str) -> None:
    """Raises BadInput where `device` is not there or cannot run `variant`, before that loads."""
    check_name(device)
    if variant.backend not in BACKENDS:
        raise BadInput(
            f"variant {variant.name!r}: unknown backend {variant.backend!r}; a newer xopt made it"
        )
    if device not in BACKENDS[variant.backend].precisions:
        raise BadInput(f"device {device!r}: {variant.name} runs on a CPU only; use --device cpu")
    check_device(device)
    if device == "cpu" and overflows(variant):
        raise BadInput(f"{variant.name}: {_foreign(variant)}")


def variants_on(folder: ModelFolder, device: str) -> list[str]:
    """The variants that make sense on a device: what commands run unless told which. Warns of
    what cannot run.

    To know that, variants of OpenVINO are opened and closed again. Raises BadInput where a file
    of theirs is damaged.
    """
    able = []
    for variant in folder.manifest.variants.values():
        if _fits(variant, device):
            reason = _lacking(folder, variant, device)
            if reason:
                log.warning("%s is left out: %s", variant.name, reason)
            else:
                able.append(variant.name)
    return able


def overflows(variant: Variant) -> bool:
    """Whether a variant's INT8 was made for another processor, and its sums overflow on this
    one.
    """
    return variant.recipe.get("weight_bits") == 8 and saturates()


def _fits(variant: Variant, device: str) -> bool:
    kind = BACKENDS.get(variant.backend)
    if kind is None or variant.precision not in kind.precisions.get(device, ()):
        return False
    return device == "cuda" or variant.precision != "bf16" or has_bf16()


def _lacking(folder: ModelFolder, variant: Variant, device: str) -> str:
    """Why a variant cannot run here; empty where it can."""
    kind = BACKENDS[variant.backend]
    if device == "cpu":
        if overflows(variant):
            return _foreign(variant)
        if not kind.tried:
            return ""
        folder.checked(variant.file)  # a damaged file is no reason to go on without it
        try:
            kind.open(folder, variant, Plan(callers=1, threads=1, tokens=1), device)
        except BadInput as error:
            return str(error)
        return ""
    return "" if kind.gpu_ready() else "see docs/gpu.md for what it needs on a GPU"


def _foreign(variant: Variant) -> str:
    return (
        f"made for {variant.recipe['target']}: its 8-bit sums overflow on this processor; make it again here with "
        "`xopt quantize`"
    )
