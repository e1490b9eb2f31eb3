"""Quantise: a model folder gets one more variant, with INT8 matrix products."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from xopt.optimize.shapes import Dim, tensor_shapes
from xopt.runtime.errors import BadInput
from xopt.runtime.files import new_file
from xopt.runtime.folder import ModelFolder, Variant
from xopt.runtime.machine import cpu_flags

__all__ = ["TARGETS", "Recipe", "Target", "detect_target", "quantize", "recipe_for", "token_matmuls"]

FP32_FILE = "onnx/model.onnx"


@dataclass(frozen=True)
class Target:
    """An instruction set that INT8 is made for, by sentence-transformers' name, and the flags that show it."""

    name: str
    flags: frozenset[str]
    saturates: bool  # U8 x S8 products are added in 16 bits: two products of 8-bit weights can overflow


TARGETS = {
    target.name: target
    for target in (
        Target("avx512_vnni", frozenset({"avx512_vnni"}), saturates=False),
        Target("avx_vnni", frozenset({"avx_vnni"}), saturates=False),
        Target("avx512", frozenset({"avx512bw"}), saturates=True),
        Target("avx2", frozenset({"avx2"}), saturates=True),
        Target("arm64", frozenset({"asimd"}), saturates=False),
    )
}


@dataclass(frozen=True)
class Recipe:
    """How an INT8 variant is made. A value: what the manifest keeps is enough to make the file again.

    `scheme` "dynamic" is onnxruntime's: int8 weights, uint8 activations with one scale and zero
    point for a whole padded batch, taken at run time, so that a pair's score depends on its batch.
    """

    scheme: str
    target: str
    weight_bits: int  # 7 keeps U8 x S8 sums of two within 16 bits where the processor adds them there
    per_channel: bool = True


def recipe_for(target: str) -> Recipe:
    """The recipe for an instruction set. Raises BadInput with the names there are."""
    if target not in TARGETS:
        raise BadInput(f"target {target!r}: unknown; one of {', '.join(TARGETS)}")
    return Recipe(scheme="dynamic", target=target, weight_bits=7 if TARGETS[target].saturates else 8)


def detect_target() -> str:
    """The best instruction set of this processor. Raises BadInput where none is seen."""
    for target in TARGETS.values():
        if target.flags <= cpu_flags():
            return target.name
    raise BadInput(f"this processor shows none of {', '.join(TARGETS)}; name one with --target")


def quantize(folder: ModelFolder, recipe: Recipe) -> ModelFolder:
    """Add the variant `onnx-int8`, made by `recipe` from `onnx/model.onnx`, in place of one that was there.

    MatMuls of tokens with constant weights become INT8; attention, embeddings and the head stay in
    float. Raises BadInput where the FP32 graph is missing or damaged.
    """
    source = folder.checked(FP32_FILE)
    file = f"onnx/model_qint8_{recipe.target}.onnx"
    with new_file(folder.path / file) as temporary:
        _quantize_dynamic(source, temporary, recipe)
    return folder.with_variant(Variant("onnx-int8", "onnx", "int8", file, asdict(recipe)))


def _quantize_dynamic(source: Path, out: Path, recipe: Recipe) -> None:
    with _quiet_logging():
        quantize_dynamic(
            onnx.load(source),  # given a path, onnxruntime would write a scratch file beside it
            out,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=token_matmuls(source),
            per_channel=recipe.per_channel,
            reduce_range=recipe.weight_bits == 7,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )


def token_matmuls(file: Path) -> list[str]:
    """The MatMuls that multiply every token's row by a constant weight: not attention's, not the head's.

    What sees one row a pair, the head and what the first-row rewrite narrowed, has rank 2 or a
    second dimension of 1; in INT8 it would gain no time.
    """
    model = onnx.load(file, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = tensor_shapes(model)
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and not _one_row(shapes.get(node.input[0], []))
    ]


def _one_row(shape: Sequence[Dim]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[1] == 1)


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Keep onnxruntime's advice to pre-process the graph off the terminal: for this recipe it changes nothing."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
